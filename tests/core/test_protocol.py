"""Likelihoods: closed forms, the mixture over masks, what is learned, files, other shapes."""

import copy
import itertools
import math

import pytest
import torch
import torch.distributions as td
from conftest import all_masks, member_seeds, shake, toy_model
from torch import nn
from torch.testing import assert_close

import gfo
from gfo.core.save import read
from gfo.train.fit import predictive_nll

GEN = torch.Generator().manual_seed(0)
BITS = (torch.rand(8, 3, generator=GEN) > 0.5).float()
REAL = 3 * torch.randn(8, 2, generator=GEN) + 50
# likelihood, outputs of the network, y
CASES = {
    "bernoulli": (gfo.Bernoulli, 3, BITS),
    "gaussian": (gfo.Gaussian, 4, REAL),
    "learned": (lambda: gfo.Gaussian(sd="learned"), 2, REAL),
}
TRAIN = dict(batch=4, samples=3, progress=False, device="cpu")


def make(name, method="gflowout", **how):
    create, outputs, y = CASES[name]
    torch.manual_seed(0)
    model, sites = toy_model(classes=outputs)
    x = torch.randn(8, 6)
    return shake(gfo.attach(model, sites, method, x, likelihood=create(), **how)), x, y


def by_hand(net, outputs, y):
    """log p(y | x, z) in float64, from torch.distributions."""
    outputs, y = outputs.double(), y.double()
    if isinstance(net.likelihood, gfo.Bernoulli):
        return td.Bernoulli(logits=outputs).log_prob(y).sum(-1)
    if net.likelihood.sd == "network":
        mean, sd = outputs[..., :2], outputs[..., 2:].exp()
    else:
        mean, sd = outputs, net.likelihood.log_sd.detach().double().exp()
    return td.Normal(mean, sd).log_prob(y).sum(-1)


class Segmenter(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.out = nn.Conv2d(4, outputs, 1)

    def forward(self, x):
        return self.out(self.relu(self.conv(x)))


@pytest.mark.parametrize("name", CASES)
def test_score_and_predictive_hold_the_closed_form(name):
    net, x, y = make(name)
    if name == "learned":
        net.likelihood.log_sd.data = torch.tensor([0.3, 1.2])
    masks = gfo.sample(net, x, y, seed=0)
    outputs = gfo.sample_logits(net, x, masks=[m[None] for m in masks])[0]
    near = dict(rtol=1e-5, atol=1e-4, check_dtype=False)
    assert_close(gfo.score(net, x, y, masks).log_lik, by_hand(net, outputs, y), **near)
    many = gfo.sample_logits(net, x, 7)
    want = by_hand(net, many, y).logsumexp(0) - math.log(7)  # log of the mean, not of a mean
    for got in (
        net.likelihood.predictive_log_lik(many, y),
        gfo.predictive(net, x, 7).log_prob(y),
    ):
        assert_close(got.detach(), want, **near)
    assert predictive_nll(net, (x, y), 7) == pytest.approx(-float(want.mean()), rel=1e-5)
    assert_close(
        net.likelihood.distribution(outputs).log_prob(y).detach(), by_hand(net, outputs, y), **near
    )


def test_bits_are_joint_under_each_mask():
    """Two masks that say (yes, yes) and (no, no): the joint knows that the bits go together."""
    outputs = torch.tensor([[[9.0, 9.0]], [[-9.0, -9.0]]])
    y = torch.tensor([[1.0, 1.0]])
    assert gfo.Bernoulli().predictive_log_lik(outputs, y).exp() == pytest.approx(0.5, abs=1e-3)
    total = sum(
        gfo.Bernoulli().predictive_log_lik(outputs, torch.tensor([bits])).exp()
        for bits in itertools.product((0.0, 1.0), repeat=2)
    )
    assert float(total) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_predictive_is_the_mixture_over_masks(name):
    net, x, y = make(name)
    found = gfo.predictive(net, x, 5)
    assert isinstance(found, td.Distribution) and found.batch_shape == (8,)
    assert_close(found.mean, gfo.predict(net, x, 5))
    torch.manual_seed(0)
    drawn = found.sample((20_000,))  # standard errors: sd/141 of a mean, 1–2 % of a variance
    assert drawn.shape == (20_000, *y.shape)
    sd = found.variance.sqrt()
    assert ((drawn.mean(0) - found.mean).abs() < 5 * sd / 141 + 1e-6).all()
    assert_close(drawn.var(0), found.variance, rtol=0.1, atol=1e-3)
    assert found.log_prob(drawn[:2]).shape == (2, 8)
    if name != "bernoulli":
        outputs = gfo.sample_logits(net, x, 5)
        assert (found.variance > net.likelihood.variance(outputs[0]).detach() - 3).all()


def test_predictive_of_labels_is_predict_and_one_number_a_label():
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    net = shake(gfo.attach(*toy_model(), "gflowout", x, likelihood=gfo.Categorical([1.0, 2, 3])))
    found, y = gfo.predictive(net, x, 9), torch.arange(8) % 3
    probs = gfo.predict(net, x, 9)
    assert_close(found.log_prob(y), probs[range(8), y].log())  # whatever the weights
    assert_close(found.mean, probs)
    assert_close(found.variance, probs * (1 - probs))
    share = torch.nn.functional.one_hot(found.sample((9_000,)), 3).float().mean(0)
    assert_close(share, probs, rtol=0, atol=0.03)  # 5 standard errors


def test_each_member_of_an_ensemble_has_its_own_sd():
    nets = [make("learned")[0] for _ in range(2)]
    nets[1].likelihood.log_sd.data += 2
    _, x, y = make("learned")
    both = gfo.Ensemble(nets)
    for masks in ("own", "shared"):
        how = [dict(masks=masks, seed=own) for own in member_seeds(2)]
        each = [gfo.predictive(n, x, 2, **h).log_prob(y) for n, h in zip(nets, how, strict=True)]
        each = torch.stack(each)
        found = gfo.predictive(both, x, 4, masks=masks).log_prob(y)
        assert_close(found, each.logsumexp(0) - math.log(2))
    assert_close(gfo.predict(both, x, 4), gfo.predictive(both, x, 4).mean)
    other = make("gaussian")[0]
    for wrong in (other, make("bernoulli")[0]):
        with pytest.raises(ValueError, match="members differ"):
            gfo.Ensemble([nets[0], wrong])


# --- what is learned


def test_real_y_is_read_standardised_by_the_training_y_and_only_once():
    net, x, y = make("gaussian")
    assert net.spec.classes == net.likelihood.size == 2
    gfo.fit(net, (x, y), epochs=1, **TRAIN)
    assert_close(net.likelihood.encode(y), (y - y.mean(0)) / y.std(0), rtol=1e-4, atol=1e-4)
    before = net.likelihood.encode(y)
    gfo.fit(net, (x, 7 * y), epochs=1, **TRAIN)  # a trained q goes on reading what it knows
    assert torch.equal(net.likelihood.encode(y), before)
    loaded, _, _ = make("gaussian")
    pairs = [(x[:3], y[:3] + 1e7), (x[3:], y[3:] + 1e7)]
    gfo.fit(loaded, pairs, epochs=1, **TRAIN)
    assert_close(loaded.likelihood.y_sd, (y + 1e7).std(0))
    constant, _, _ = make("gaussian")
    gfo.fit(constant, (x, torch.ones_like(y)), epochs=1, **TRAIN)
    assert torch.equal(constant.likelihood.encode(torch.ones_like(y)), torch.zeros_like(y))


def test_a_learned_sd_is_trained_saved_and_moved(tmp_path):
    net, x, y = make("learned")
    gfo.fit(net, (x, y), epochs=0, **TRAIN)
    assert_close(net.likelihood.log_sd.detach(), y.std(0).log())  # where it starts
    frozen = copy.deepcopy(net.model.state_dict())
    gfo.fit(net, (x, y), epochs=1, backbone=False, **TRAIN)
    for name, weight in net.model.state_dict().items():
        assert torch.equal(weight, frozen[name]), name
    assert (net.likelihood.log_sd.detach() != y.std(0).log()).all()  # of a frozen network too
    gfo.fit(net, (x, y), epochs=20, lr={"backbone": 0.05}, **TRAIN)
    trained = net.likelihood.log_sd.detach().clone()
    assert ((trained - y.std(0).log()).abs() > 0.2).all()
    gfo.save(net, tmp_path / "net.pt")
    model, _ = toy_model(classes=2)
    loaded = gfo.load(tmp_path / "net.pt", model, likelihood=gfo.Gaussian(sd="learned"))
    assert torch.equal(loaded.likelihood.log_sd, trained)
    assert torch.equal(loaded.likelihood.encode(y), net.likelihood.encode(y))
    masks = gfo.sample(net, x, y, seed=0)
    for a, b in zip(gfo.score(net, x, y, masks), gfo.score(loaded, x, y, masks), strict=True):
        assert torch.equal(a, b)
    assert loaded.double().likelihood.log_sd.dtype == torch.float64
    with pytest.raises(ValueError, match="another likelihood"):
        gfo.load(tmp_path / "net.pt", toy_model(classes=4)[0], likelihood=gfo.Gaussian())


def test_a_learned_sd_finds_the_noise():
    """y is noise of sd 3 around 0: a network of zeros leaves it to the sd, within 1/sqrt(2·400)."""
    torch.manual_seed(0)
    model, sites = toy_model(classes=1)
    x, y = torch.zeros(400, 6), 3 * torch.randn(400, 1)
    net = gfo.attach(model, sites, "random", x, likelihood=gfo.Gaussian(sd="learned"))
    net.likelihood.y_seen.fill_(True)  # so that it starts at 1, not at the answer
    gfo.fit(net, (x, y), epochs=150, batch=400, lr={"backbone": 0.03}, progress=False, device="cpu")
    assert float(net.likelihood.log_sd.exp().detach()) == pytest.approx(float(y.std()), rel=0.02)


def test_a_likelihood_belongs_to_one_net_and_comes_along_from_another():
    shared = gfo.Gaussian(sd="learned")
    nets = [
        gfo.attach(*toy_model(classes=2), "random", torch.randn(2, 6), likelihood=shared)
        for _ in range(2)
    ]
    nets[0].likelihood.log_sd.data.fill_(3.0)
    assert float(nets[1].likelihood.log_sd.detach().abs().max()) == 0 and shared.outputs == ()
    heir = gfo.attach(
        *toy_model(classes=2), "random", torch.randn(2, 6), likelihood=nets[0].likelihood
    )
    assert torch.equal(heir.likelihood.log_sd, nets[0].likelihood.log_sd)
    assert heir.likelihood.log_sd is not nets[0].likelihood.log_sd


def test_a_run_goes_on_as_if_unbroken(tmp_path):
    runs = {}
    for name, stops in (("once", (4,)), ("twice", (2, 4))):
        for epochs in stops:
            net, x, y = make("learned")
            gfo.fit(net, (x, y), (x, y), epochs=epochs, checkpoint=tmp_path / name, **TRAIN)
        runs[name] = net.state_dict()
    assert all(torch.equal(runs["once"][k], runs["twice"][k]) for k in runs["once"])
    assert "likelihood.log_sd" in runs["once"]


def test_files_from_before_the_outputs_were_noted_still_load(tmp_path):
    x, y = torch.randn(6, 6), torch.arange(6) % 3
    net = shake(gfo.attach(*toy_model(), "gflowout", x))
    gfo.save(net, tmp_path / "net.pt")
    gfo.fit(net, (x, y), epochs=1, checkpoint=tmp_path / "run.pt", **TRAIN)
    for name in ("net.pt", "run.pt"):
        content = torch.load(tmp_path / name)
        assert not [key for key in content["state"] if "likelihood" in key]
        content["gfo"]["spec"] = content["gfo"]["spec"][:7]  # as it was then
        then = {k: v for k, v in content.items() if k not in ("digest", "format")}
        torch.save(then, tmp_path / name)
    assert read(tmp_path / "net.pt")["gfo"]["spec"][7] == [3]
    gfo.load(tmp_path / "net.pt", toy_model()[0])
    again = gfo.attach(*toy_model(), "gflowout", x)
    assert len(gfo.fit(again, (x, y), epochs=2, checkpoint=tmp_path / "run.pt", **TRAIN)) == 2


# --- other shapes, other likelihoods


PIXELS = {
    "labels": (gfo.Categorical, 3, torch.randint(3, (6, 5, 7), generator=GEN)),
    "weights": (lambda: gfo.Categorical([1.0, 2.0, 3.0]), 3, torch.randint(3, (6, 5, 7))),
    "bernoulli": (gfo.Bernoulli, 2, (torch.rand(6, 2, 5, 7) > 0.5).float()),
    "soft": (gfo.SoftTargets, 2, torch.rand(6, 2, 5, 7)),
    "gaussian": (gfo.Gaussian, 2, torch.randn(6, 1, 5, 7)),
    "learned": (lambda: gfo.Gaussian(sd="learned"), 1, torch.randn(6, 1, 5, 7)),
}


@pytest.mark.parametrize("name", PIXELS)
def test_what_belongs_to_one_example_is_summed(name, tmp_path):
    create, outputs, y = PIXELS[name]
    torch.manual_seed(0)
    x = torch.randn(6, 1, 5, 7)
    net = gfo.attach(Segmenter(outputs), ["relu"], "gflowout", x, likelihood=create())
    raw = gfo.sample_logits(net, x, 3)
    flat = raw[0].movedim(1, -1).flatten(0, 2)  # (B·H·W, C): each pixel a row of its own
    each = y.flatten() if y.dim() == 3 else y.movedim(1, -1).flatten(0, 2)
    alone = create()
    alone.build((outputs,))
    want = alone.log_lik(flat, each).view(6, -1).sum(1)
    assert_close(net.likelihood.log_lik(raw[0], y), want, rtol=1e-4, atol=1e-4)
    history = gfo.fit(net, (x, y), (x, y), epochs=2, **TRAIN)
    assert history["valid_nll"].notna().all()
    found = gfo.predictive(net, x, 3)
    assert_close(found.mean, gfo.predict(net, x, 3))
    assert found.log_prob(y).shape == (6,) and found.sample().shape == y.shape
    assert found.variance.shape == found.mean.shape and gfo.predict(net, x).shape[2:] == (5, 7)
    masks = [m[:, None].expand(-1, 6, -1) for m in all_masks([4])]
    q = sum(gfo.score(net, x, y, list(z)).log_q.exp() for z in zip(*masks, strict=True))
    assert_close(q, torch.ones(6), rtol=0, atol=1e-5)
    assert len(gfo.audit_masks(net, x, y, draws=10)) == 6
    gfo.save(net, tmp_path / "net.pt")
    loaded = gfo.load(tmp_path / "net.pt", Segmenter(outputs), likelihood=create())
    assert torch.equal(gfo.predict(loaded, x), gfo.predict(net, x))


def test_q_reads_where_the_labels_are_and_not_how_large_the_image_is():
    x = torch.randn(2, 1, 8, 8)
    net = gfo.attach(Segmenter(3), ["relu"], "gflowout", x)
    y = torch.zeros(2, 8, 8, dtype=torch.long)
    y[1, :4, :4] = 2
    code = net.likelihood.encode(y)
    assert code.shape == (2, 3 * 16) == (2, net.spec.classes)
    want = torch.nn.functional.one_hot(y, 3).movedim(-1, 1).float().unfold(2, 2, 2).unfold(3, 2, 2)
    assert_close(code, want.mean((-1, -2)).flatten(1))
    twice = y.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(net.likelihood.encode(twice), code)


def test_labels_of_minus_100_count_nothing():
    x, y = torch.randn(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.long)
    net = gfo.attach(Segmenter(3), ["relu"], "gflowout", x)
    outputs = gfo.sample_logits(net, x, 1)[0]
    part = y.clone()
    part[:, 2:] = -100
    want = outputs.log_softmax(1)[:, 1, :2].sum((1, 2))
    assert_close(net.likelihood.log_lik(outputs, part), want)
    gfo.fit(net, (x, part), (x, part), epochs=1, **TRAIN)
    with pytest.raises(ValueError, match="labels run -100"):  # of a row, that is no label
        gfo.fit(gfo.attach(*toy_model(), "gflowout", torch.randn(2, 6)),
                (torch.randn(2, 6), torch.tensor([0, -100])), **TRAIN)  # fmt: skip


class Counts(gfo.Likelihood):
    """Counts, with nothing but a distribution."""

    wants = "counts as floats"

    def distribution(self, outputs):
        return td.Independent(td.Poisson(outputs.exp()), 1)


def test_a_likelihood_of_your_own_is_a_distribution(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.poisson(torch.ones(8, 2))
    model, sites = toy_model(classes=2)
    net = shake(gfo.attach(model, sites, "gflowout", x, likelihood=Counts()))
    gfo.fit(net, (x, y), (x, y), epochs=1, **TRAIN)
    outputs = gfo.sample_logits(net, x, 4)
    assert_close(gfo.predict(net, x, 4), outputs.exp().mean(0))
    rate = outputs.exp()
    assert_close(gfo.predictive(net, x, 4).variance, rate.mean(0) + rate.var(0, correction=0))
    assert len(gfo.diagnose(net, x, y, samples=32)) and len(gfo.audit_masks(net, x, y, draws=9))
    gfo.save(net, tmp_path / "net.pt")
    gfo.load(tmp_path / "net.pt", toy_model(classes=2)[0], likelihood=Counts())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["id-gflowout", "contextual", "concrete", "random"])
def test_every_method_takes_every_likelihood(name, method):
    net, x, y = make(name, method)
    history = gfo.fit(net, (x, y), (x, y), epochs=2, **TRAIN)
    assert torch.isfinite(torch.tensor(history.drop(columns="epoch").to_numpy())).all()
    assert gfo.predict(net, x).shape == y.shape


# --- refused in one line


def fitted(likelihood, outputs, y):
    x = torch.randn(8, 6)
    net = gfo.attach(*toy_model(classes=outputs), "gflowout", x, likelihood=likelihood)
    gfo.fit(net, (x, y), progress=False, device="cpu")


class Sideways(nn.Module):
    """(T, B, K): the batch in the middle."""

    def __init__(self):
        super().__init__()
        self.read, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.read(x)).expand(2, -1, -1)


BAD = {
    "one logit, faults A5": (lambda: fitted(None, 1, BITS), "gfo.Bernoulli() for yes or no"),
    "a regressor's y": (lambda: fitted(None, 2, REAL[:, 0]), "gfo.Gaussian()"),
    "odd": (lambda: fitted(gfo.Gaussian(), 3, REAL), "the network has 3 outputs"),
    "sd": (lambda: gfo.Gaussian(sd="fixed"), "'network' or 'learned'"),
    "flat": (lambda: fitted(gfo.Gaussian("learned"), 1, REAL[:, 0]), "(8, 1) targets: use y[:, N"),
    "two for one": (lambda: fitted(gfo.Gaussian(), 2, REAL), "needs (8, 1) targets"),
    "integers": (lambda: fitted(gfo.Gaussian(), 4, REAL.long()), "use y.float()"),
    "nan": (lambda: fitted(gfo.Gaussian(), 4, REAL * math.nan), "y contains NaN or inf"),
    "degrees": (lambda: fitted(gfo.Bernoulli(), 3, BITS / 2), "gfo.SoftTargets()"),
    "bits as integers": (lambda: fitted(gfo.Bernoulli(), 3, BITS.long()), "0 and 1 as floats"),
    "a name": (
        lambda: fitted("categorical", 3, BITS), "needs to be an object such as gfo.Categorical()",
    ),
    "batch": (lambda: gfo.attach(Sideways(), ["read"], "random", torch.randn(8, 6)),
              "axis 0 of the logits"),
    "five axes": (lambda: gfo.Categorical().build((3, 2, 2, 2, 2)), "at most 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_in_one_line(name):
    call, message = BAD[name]
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pixels_of_another_size_are_named():
    x = torch.randn(2, 1, 4, 4)
    net = gfo.attach(Segmenter(3), ["relu"], "gflowout", x)
    with pytest.raises(ValueError, match=r"needs \(2, 4, 4\) labels, one per position"):
        gfo.fit(net, (x, torch.zeros(2, 4, 5, dtype=torch.long)), **TRAIN)
    with pytest.raises(ValueError, match=r"needs \(2, 4, 4\)"):
        gfo.fit(net, (x, torch.zeros(2, dtype=torch.long)), **TRAIN)


def test_a_copy_of_the_net_has_a_likelihood_of_its_own():
    net, x, y = make("learned")
    twin = copy.deepcopy(net)
    twin.likelihood.log_sd.data += 1
    masks = gfo.sample(net, x, y, seed=0)
    assert not torch.equal(*(gfo.score(n, x, y, masks).log_lik for n in (net, twin)))


def test_faults_a6_y_of_another_shape_is_not_spread_over_rows():
    torch.manual_seed(0)
    model, sites = toy_model(classes=2)
    x, y = torch.randn(8, 6), torch.randn(8, 1)
    net = gfo.attach(model, sites, "random", x, likelihood=gfo.Gaussian())
    mixture = gfo.predictive(net, x)
    with pytest.raises(ValueError, match=r"y has shape \(8,\), needs \(8, 1\)"):
        mixture.log_prob(y[:, 0])  # it was (8,) of sums over rows, dozens of nats off
    assert_close(mixture.log_prob(y.numpy()), mixture.log_prob(y))
    assert mixture.log_prob(mixture.sample((5,))).shape == (5, 8)
    labels = gfo.predictive(gfo.attach(*toy_model(), "random", x), x)
    with pytest.raises(ValueError, match=r"y has shape \(8, 1\), needs \(8,\)"):
        labels.log_prob(torch.zeros(8, 1, dtype=torch.long))


def test_the_predictive_refuses_y_that_the_loss_refuses():
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    coins = gfo.attach(*toy_model(classes=2), "random", x, likelihood=gfo.Bernoulli())
    for y, said in (
        (torch.ones(8, 2, dtype=torch.long), "int64"),  # torch: "result type Float can't be cast"
        (torch.full((8, 2), 0.3), "0 and 1"),  # it was the likelihood of no answer
        (torch.full((8, 2), torch.nan), "NaN"),  # it was NaN
    ):
        with pytest.raises(ValueError, match=said):
            coins.loss(x, y, n=8)
        with pytest.raises(ValueError, match=said):
            gfo.predictive(coins, x).log_prob(y)
    labels = gfo.predictive(gfo.attach(*toy_model(classes=2), "random", x), x)
    with pytest.raises(ValueError, match="labels run 0…2, the network has classes 0…1"):
        labels.log_prob(torch.tensor([[0, 1] * 4, [0, 2] * 4]))  # two draws of eight


def test_faults_a6_the_predictive_leaves_out_labels_of_minus_100():
    torch.manual_seed(0)
    x, y = torch.randn(4, 1, 6, 6), torch.randint(0, 3, (4, 6, 6))
    y[:, :2] = -100
    net = gfo.attach(Segmenter(3), ["relu"], "random", x)
    want = net.likelihood.predictive_log_lik(gfo.sample_logits(net, x), y)
    assert_close(gfo.predictive(net, x).log_prob(y), want)


class Own(gfo.Gaussian):
    pass


class OwnLabels(gfo.Categorical):
    pass


@pytest.mark.parametrize("own", [Own, OwnLabels])
def test_faults_a12_a_likelihood_of_your_own_is_no_built_in_one(own, tmp_path):
    model, sites = toy_model(classes=2)
    net = gfo.attach(model, sites, "random", torch.randn(4, 6), likelihood=own())
    gfo.save(net, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=rf"another likelihood: {own.__name__}\(\) there"):
        gfo.load(tmp_path / "net.pt", toy_model(classes=2)[0], likelihood=own.__base__())
