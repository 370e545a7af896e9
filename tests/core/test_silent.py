"""What a hostile tester found silently wrong: each against a second way to the same number."""

import copy
import math
from functools import partial

import pandas as pd
import pytest
import torch
from conftest import all_masks, shake, toy_model
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    distributed,
)

import gfo
from gfo.audit import toys, trial
from gfo.core.batch import Tokens
from gfo.core.masked_pass import noise_for
from gfo.core.noise import generator
from gfo.core.objectives import SiteTerms, kl_bernoulli, log_bernoulli
from gfo.core.registry import Registry
from gfo.evaluate import marginal

torch.manual_seed(0)
X, Y = torch.randn(40, 6), torch.arange(40) % 3


def made(method, likelihood=None, **how):
    torch.manual_seed(0)
    model, sites = toy_model(**how)
    return shake(gfo.attach(model, sites, method, X[:2], likelihood=likelihood))


def test_behind_a_frozen_batchnorm_statistics_are_those_of_what_it_gives():
    torch.manual_seed(0)
    frozen, free = nn.BatchNorm1d(6), nn.BatchNorm1d(5)
    model = nn.Sequential(nn.Linear(6, 6), frozen, nn.Linear(6, 5), free, nn.ReLU())
    model.append(nn.Linear(5, 3)).train()
    frozen.running_mean.fill_(4.0)
    frozen.running_var.fill_(9.0)
    frozen.eval()
    net = gfo.attach(model, ["4"], "deterministic", X[:4])
    gfo.train.reestimate(net, X, batch=40)
    h = model[2](frozen(model[0](X)))
    torch.testing.assert_close(free.running_mean, h.mean(0))
    torch.testing.assert_close(free.running_var, h.var(0))
    assert frozen.running_mean.eq(4).all() and frozen.running_var.eq(9).all()


@pytest.mark.parametrize("how", [
    lambda d: dict(batch_size=8, shuffle=True),
    lambda d: dict(batch_size=8, sampler=SubsetRandomSampler(range(40))),
    lambda d: dict(batch_sampler=BatchSampler(RandomSampler(d), 8, False)),
    lambda d: dict(batch_size=8, sampler=distributed.DistributedSampler(d, 1, 0)),
])  # fmt: skip
def test_rows_in_an_unknown_order_are_refused_however_they_are_mixed(how):
    net, data = made("random"), TensorDataset(X, Y)
    for call in (gfo.predict, lambda n, loader: gfo.report(n, loader, Y)):
        with pytest.raises(ValueError, match="the loader shuffles"):
            call(net, DataLoader(data, **how(data)))
    ordered = distributed.DistributedSampler(data, 1, 0, shuffle=False)
    torch.testing.assert_close(
        gfo.predict(net, DataLoader(data, 8, sampler=ordered)), gfo.predict(net, X)
    )


class RandomAccess(Sampler):
    """Rows from the last to the first, whatever its name says."""

    def __iter__(self):
        return iter(range(39, -1, -1))

    def __len__(self):
        return 40


class Mixed(RandomAccess):
    """Rows in an order that is drawn anew, though it is no sampler of torch."""

    def __iter__(self):
        return iter(torch.randperm(40).tolist())


class Batches(Mixed):
    """Batches of such rows, with no sampler of its own to be asked."""

    def __iter__(self):
        return iter(torch.randperm(40).split(8))

    def __len__(self):
        return 5


def test_what_tells_a_loader_that_shuffles_is_its_order_not_its_name():
    net, data = made("random"), TensorDataset(X, Y)
    found = gfo.predict(net, DataLoader(data, 8, sampler=RandomAccess()))
    torch.testing.assert_close(found, gfo.predict(net, X.flip(0)))
    for how in (dict(batch_size=8, sampler=Mixed()), dict(batch_sampler=Batches())):
        with pytest.raises(ValueError, match="the loader shuffles"):
            gfo.predict(net, DataLoader(data, **how))


@pytest.mark.parametrize("samples", [1, 3, 20])
def test_a_mixture_weighs_each_of_a_methods_masks_and_each_member_alike(samples):
    one, other = made(gfo.Masksembles(count=8)), made(gfo.Masksembles(count=6))
    for net in (one, gfo.Ensemble([one, other]), gfo.Ensemble([one, made("deterministic")])):
        want = gfo.predict(net, X, samples)
        torch.testing.assert_close(gfo.predictive(net, X, samples).mean, want)


def test_shards_of_masksembles_have_the_masks_of_the_whole_batch():
    net, how = made(gfo.Masksembles(count=4)).train(), dict(n=40, seed=0, step=0)
    whole = net.loss(X[:12], Y[:12], **how).total
    parts = [net.loss(X[6 * k : 6 * k + 6], Y[6 * k : 6 * k + 6], shard=(k, 2), **how).total
             for k in (0, 1)]  # fmt: skip
    torch.testing.assert_close(sum(parts) / 2, whole)


@pytest.mark.parametrize(("method", "name", "value"), [
    ("random", "inverted", True), ("gflowout", "pull", 0.5), ("gflowout", "tied", True),
])  # fmt: skip
def test_no_file_forgets_a_setting_that_was_changed_after_attach(method, name, value, tmp_path):
    net = made(method)
    setattr(net.method, name, value)
    with pytest.raises(ValueError, match=f"{name} was set after attach"):
        gfo.save(net, tmp_path / "net.pt")


def test_class_weights_are_no_part_of_the_predictive():
    plain, weighed = made("gflowout"), made("gflowout", gfo.Categorical([1.0, 9.0, 3.0]))
    for f in (lambda n: marginal.log_predictive_curve(n, X, Y, (5, 20)),
              lambda n: marginal.importance_log_predictive(n, X, Y, 20).log_prob):  # fmt: skip
        torch.testing.assert_close(f(weighed), f(plain))


def test_h_before_is_what_the_mask_left_whatever_a_layer_does_to_it_in_place():
    nets, masks = [], [m[:40] for m in all_masks((4, 3))]
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.ReLU(inplace), nn.Linear(4, 3))
        model.extend([nn.Tanh(), nn.Linear(3, 3)])
        nets.append(shake(gfo.attach(model, ["1", "4"], gfo.GFlowOut(activation="before"), X[:2])))
    one, other = (gfo.score(net, X, Y, masks) for net in nets)
    torch.testing.assert_close(one.log_p, other.log_p)


class InPlace(nn.Module):
    """Normalises its input where it lies."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.sub_(0.5).div_(2.0))


@pytest.mark.parametrize("method", ["gflowout", "contextual", "id-gflowout"])
def test_a_model_that_changes_its_input_in_place_reads_it_once(method):
    losses = []
    for changes, given in ((False, (X - 0.5) / 2), (True, X)):
        torch.manual_seed(0)
        model, _ = toy_model()
        model = InPlace(model) if changes else model
        net = shake(gfo.attach(model, "*relu?", method, given[:2].clone())).train()
        x = given.clone()
        losses.append(net.loss(x, Y, n=40, seed=0, step=0))
        losses[-1].total.backward()
        assert torch.equal(x, given)
    for name in losses[0].parts.keys() - {"tb"}:  # log Z reads x as it came
        torch.testing.assert_close(losses[0].parts[name], losses[1].parts[name])


def test_second_derivatives_of_a_sites_terms_are_autograds():
    gen = torch.Generator().manual_seed(0)
    q, p = (torch.randn(5, 4, generator=gen, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(5, 4, generator=gen).round()

    def weighed(terms):
        return sum((k + 1) * t.square().sum() for k, t in enumerate(terms))

    def plain(q, p):
        return log_bernoulli(q, mask), log_bernoulli(p, mask), kl_bernoulli(q.detach(), p)

    found = []
    for f in (plain, lambda q, p: SiteTerms.apply(q, p, mask)):
        leaves = [q.float().requires_grad_(), p.float().requires_grad_()]
        first = torch.autograd.grad(weighed(f(*leaves)), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        found.append([*first, *second])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_number_per_row_is_an_input_like_any_other():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(7, 4), nn.Linear(4, 3)

        def forward(self, x, weight):
            return self.out(torch.relu(self.a(torch.cat([x, weight[:, None]], 1))))

    net = gfo.attach(Two(), ["a"], "gflowout", (X[:2], torch.rand(2)))
    assert net.loss((X, torch.rand(40)), Y, n=40).total.isfinite()


def test_a_policy_that_reads_nothing_trains_under_random_masks():
    net = made(gfo.GFlowOut(activation="none", label=False)).train()
    net.loss(X, Y, n=40, seed=0, step=0).total.backward()
    assert all(p.grad.isfinite().all() for p in net.method.q.parameters() if p.grad is not None)


def conv_net(method, likelihood=None, outputs=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, outputs, 1))
    return gfo.attach(model, ["1"], method, torch.randn(2, 1, 5, 5), likelihood=likelihood)


def test_one_number_for_log_z_takes_images_of_any_size():
    net, x = conv_net("id-gflowout"), torch.randn(4, 1, 9, 9)
    y = torch.zeros(4, 9, 9).long()
    assert net.loss(x, y, n=4).total.isfinite()
    assert gfo.score(net, x, y, gfo.sample(net, x, y)).log_z.shape == (4,)


@pytest.mark.parametrize(("likelihood", "outputs", "y"), [
    (None, 3, torch.zeros(6, 5, 5).long()),
    (gfo.Gaussian(), 2, torch.zeros(6, 1, 1, 1)),
    (gfo.Gaussian(), 2, torch.zeros(6, 1, 1, 9)),
    (gfo.Bernoulli(), 2, torch.zeros(6, 2, 1, 9)),
])  # fmt: skip
def test_labels_of_another_size_are_never_spread_over_a_larger_image(likelihood, outputs, y):
    net, x = conv_net("random", likelihood, outputs), torch.randn(6, 1, 9, 9)
    for call in (lambda: net.loss(x, y, n=6), lambda: gfo.score(net, x, y, gfo.sample(net, x))):
        with pytest.raises(ValueError, match="y has shape") as told:
            call()
        assert "\n" not in str(told.value)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.site, self.read, self.out = Tokens(), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, h, attention_mask):
        return self.out(self.site(self.read(h), attention_mask).mean(1))


def test_an_attention_mask_may_be_of_whole_numbers():
    h, real = torch.randn(4, 5, 6), torch.tensor([[1, 1, 1, 0, 0]] * 2 + [[1] * 5] * 2)
    found = []
    for mask in (real, real.bool()):
        torch.manual_seed(0)
        net = shake(gfo.attach(Padded(), ["site"], "gflowout", (h, mask)))
        found.append(gfo.predict(net, (h, mask)))
    assert torch.equal(*found)


def test_what_was_never_attached_and_keywords_for_a_tensor_end_in_one_line():
    net, (model, _) = made("random"), toy_model()
    for call in (lambda: gfo.predictive(model, X), lambda: gfo.report(model, X, Y),
                 lambda: gfo.predictive(net, X, "3"), lambda: gfo.predict(net, {"foo": X}),
                 lambda: net.loss({"foo": X}, Y, n=40)):  # fmt: skip
        with pytest.raises(ValueError) as told:
            call()
        assert "\n" not in str(told.value)


def test_standardise_and_keep_probabilities_take_arrays():
    model, sites = gfo.models.regressor(inputs=6, targets=1, hidden=(4, 3))
    net, y = gfo.attach(model, sites, "gflowout", X[:2], likelihood=gfo.Gaussian()), X[:, :1] * 3
    net.likelihood.standardise([y.numpy()])
    assert math.isclose(net.likelihood.y_sd.item(), y.std().item(), rel_tol=1e-5)
    keep = gfo.evaluate.masks.keep_probabilities(made("gflowout"), X.numpy(), Y.numpy())
    assert keep["q"][0].shape == (40, 4)


def test_members_of_an_ensemble_have_masks_of_their_own():
    net = made("random")
    once, many = [copy.deepcopy(net) for _ in range(20)], gfo.sample_logits(net, X, 4000)
    found = torch.stack([gfo.predict(gfo.Ensemble(once), X, 20, seed=s) for s in range(200)])
    # 20 independent masks: their mean varies by a twentieth of what one mask does; the relative
    # error of a variance from 200 draws, about 0.1, is averaged over 40 inputs
    ratio = found.var(0).mean() / many.softmax(-1).var(0).mean()
    assert 0.7 / 20 < ratio < 1.3 / 20


@pytest.mark.parametrize("name", ["concrete", "contextual", "gflowout", "id-gflowout", "vimco"])
def test_a_bare_call_trains_the_model_and_no_mask(name):
    net = made(name).train()
    with pytest.warns(UserWarning, match="under mean masks"):
        nn.functional.cross_entropy(net(X), Y).backward()
    assert all(p.grad is None for p in net.method.parameters())
    assert any(p.grad is not None and p.grad.any() for p in net.model.parameters())


def test_a_refused_attach_leaves_the_network_that_owns_the_method():
    net, (other, sites) = made(gfo.ConcreteDropout(length_scale=1.0)), toy_model()
    before = net.loss(X, Y, n=40, step=0).total
    with pytest.raises(ValueError, match="already belongs to a network"):
        gfo.attach(other, sites, net.method, X[:2])
    assert torch.equal(net.loss(X, Y, n=40, step=0).total, before)


class Shifts(nn.Linear):
    """Works on its input in place."""

    def forward(self, x):
        return super().forward(x.sub_(1))


def test_attach_leaves_the_example_as_it_was():
    x = X.clone()
    gfo.attach(nn.Sequential(Shifts(6, 5), nn.ReLU(), nn.Linear(5, 3)), "1", "random", x)
    assert torch.equal(x, X)


class Product(nn.Module):
    """A site behind a product that mixes places, not channels: f(h, A)."""

    def __init__(self, layer, places, product):
        super().__init__()
        self.layer, self.site, self.out = layer, nn.Identity(), nn.Linear(8, 3)
        self.product, self.a = product, nn.Parameter(torch.eye(places))

    def forward(self, x):
        h = self.site(self.product(self.layer(x), self.a))
        where = 1 if h.shape[1] == 8 else h.dim() - 1
        return self.out(h.movedim(where, -1).flatten(1, -2).mean(1))


@pytest.mark.parametrize(("layer", "shape", "product", "axes"), [
    (nn.Conv2d(3, 8, 1), (3, 10, 12), lambda h, a: h @ a, "BCHW"),
    (nn.Conv2d(3, 8, 1), (3, 12, 10), lambda h, a: a @ h, "BCHW"),
    (nn.Conv1d(3, 8, 1), (3, 12), lambda h, a: torch.matmul(h, a), "BCL"),
    (nn.Linear(3, 8), (12, 3), lambda h, a: a @ h, "BTC"),
    (nn.Linear(3, 8), (12, 3), lambda h, a: torch.bmm(a.expand(len(h), -1, -1), h), "BTC"),
])  # fmt: skip
def test_a_product_that_mixes_places_leaves_the_channels_where_they_are(
    layer, shape, product, axes
):
    net = gfo.attach(Product(layer, 12, product), "site", "random", torch.randn(2, *shape))
    assert (net.sites[0].axes, net.sites[0].width) == (axes, 8)


def test_of_a_product_with_an_input_of_which_nothing_is_known_the_axis_is_asked():
    model = Product(nn.Identity(), 8, lambda h, a: a @ h)
    with pytest.raises(ValueError, match="nothing tells which axis holds its channels"):
        gfo.attach(model, "site", "random", torch.randn(2, 8, 5))


def test_a_mean_is_told_where_the_standard_deviation_underflows():
    net = made("random", gfo.Gaussian(), classes=2)
    with torch.no_grad():
        net.model.out.bias.copy_(torch.tensor([0.5, -200.0]))
    mean, dist = gfo.predict(net, X), gfo.predictive(net, X)
    assert mean.isfinite().all() and torch.allclose(dist.mean, mean)
    assert not dist.log_prob(mean).isnan().any()  # of a mask with another mean −inf, as float32 has
    net.model.out.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="its 'model.out.weight' is not finite"):
        gfo.predict(net, X)


def test_validation_on_rows_in_an_unknown_order_is_refused():
    valid = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    with pytest.raises(ValueError, match="the loader shuffles"):
        gfo.fit(made("random"), (X, Y), valid, epochs=1, progress=False, device="cpu")


@pytest.mark.parametrize("wrong", ["flag", "checkpoint"])
def test_a_refused_fit_leaves_what_the_network_knows_of_y(wrong, tmp_path):
    y, how = torch.randn(40, 1) * 1000, dict(epochs=1, progress=False, device="cpu")
    net = made("random", gfo.Gaussian(sd="learned"), classes=1)
    bad, message = {"bf16": "no"}, "bf16 is 'no'"
    if wrong == "checkpoint":
        bad, message = {"checkpoint": tmp_path / "c.pt"}, "holds another run"
        gfo.fit(copy.deepcopy(net), (X, y), seed=1, **bad, **how)
    with pytest.raises(ValueError, match=message):
        gfo.fit(net, (X, y), **bad, **how)
    assert not net.likelihood.y_seen and net.likelihood.log_sd == 0
    gfo.fit(net, (X, y / 1000), **how)
    assert 0.5 < net.likelihood.y_sd < 2


def test_a_batch_of_one_row_spoils_no_mean_of_an_epoch():
    net, data = made("id-gflowout"), [(X[:16], Y[:16]), (X[16:17], Y[16:17])]
    found = gfo.fit(net, data, epochs=1, progress=False, device="cpu", lr={"backbone": 0.0})
    assert found["tb_floor"].notna().all() and found["tb_residual_sq"].notna().all()


def test_an_augmentation_in_place_leaves_the_data():
    x, add = X.clone(), lambda batch, _: batch.add_(1)
    layers = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    for data in ((x, Y), [(x, Y)]):
        net = gfo.attach(nn.Sequential(*copy.deepcopy(layers)), "2", "random", X[:2])
        gfo.fit(net, data, epochs=2, augment=add, progress=False, device="cpu")
        gfo.train.reestimate(net, x, augment=add, batch=8)
        assert torch.equal(x, X)


def test_what_only_reads_leaves_the_callers_settings():
    before = pd.options.display.precision
    gfo.report(made("random"), X, Y).figure()
    assert pd.options.display.precision == before
    torch.manual_seed(1)
    toy, state = toys.toy((2, 2), points=3), torch.get_rng_state()
    trial.trained(gfo.RandomDropout(), toy)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_a_loader_whose_workers_answer_out_of_order_is_refused():
    net, data = made("random"), TensorDataset(X, Y)
    with pytest.raises(ValueError, match="batches as they get ready: in_order=True"):
        gfo.predict(net, DataLoader(data, 8, num_workers=2, in_order=False))


def test_masks_of_a_q_that_reads_y_are_not_drawn_from_p_without_a_word():
    for source in ("q", "train"):
        for method in ("gflowout", "contextual"):
            net = made(method)
            noise = noise_for(net, 40, generator(0))
            if method == "gflowout":
                with pytest.raises(ValueError, match=f"'{source}' draws from q, .*: pass y"):
                    gfo.masked_pass(net, X, noise=noise, source=source)
            else:
                assert gfo.masked_pass(net, X, noise=noise, source=source).q_logits[0] is not None


def test_a_name_that_is_taken_is_not_given_away_without_a_word():
    """A plugin's "random" would have answered for the library's."""
    names = Registry("method", {"random": gfo.RandomDropout, "part": partial(gfo.RandomDropout)})
    for name in names:
        with pytest.raises(ValueError, match=f"method '{name}' is .*: take another name"):
            names.register(name)(gfo.GFlowOut)
    again = type("RandomDropout", (gfo.RandomDropout,), {"name": "random"})  # a cell runs again
    assert names.register("random")(again) is again is names["random"]


class Tagger(nn.Module):
    """Logits of each of the tokens, classes last, as most token classifiers have them, or first."""

    def __init__(self, first):
        super().__init__()
        self.embed, self.layer, self.first = nn.Embedding(9, 8), nn.Linear(8, 8), first
        self.relu, self.out = nn.ReLU(), nn.Linear(8, 3)

    def forward(self, ids):
        logits = self.out(self.relu(self.layer(self.embed(ids)))) + 0.1
        return logits.transpose(1, 2) if self.first else logits


@pytest.mark.parametrize("tokens", [3, 6])  # 3 classes: a square took the wrong axis unseen
def test_classes_that_lie_last_are_refused_before_a_softmax_runs_over_tokens(tokens):
    ids = torch.randint(9, (4, tokens))
    with pytest.raises(ValueError, match=rf"\(4, {tokens}, 3\) have classes last: move them"):
        gfo.attach(Tagger(False), ["relu"], "random", ids)
    net = gfo.attach(Tagger(True), ["relu"], "random", ids)
    torch.testing.assert_close(gfo.predict(net, ids, samples=3).sum(1), torch.ones(4, tokens))
    # yes or no asks nothing of the order of axes
    gfo.attach(Tagger(False), ["relu"], "random", ids, likelihood=gfo.Bernoulli())


@pytest.mark.parametrize("how", [{}, dict(activation="before", objective="vargrad", masks=2)])
def test_only_the_likelihood_moves_what_made_the_input(how):
    """log Z and a policy that reads x sent their gradients into an encoder before the network."""
    net, x = made(gfo.GFlowOut(**how)), X.clone().requires_grad_()
    parts = net.loss(x, Y, n=40).parts
    moved = {
        name for name, part in parts.items()
        if (grad := torch.autograd.grad(part, x, retain_graph=True, allow_unused=True)[0])
        is not None and grad.abs().max() > 0
    }  # fmt: skip
    assert moved == {"nll"}


class Scores(nn.Module):
    """One head of attention, with a dropout on its weights."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))
        self.drop, self.out = nn.Identity(), nn.Linear(4, 3)

    def forward(self, x):
        weight = self.drop((self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1))
        return self.out((weight @ self.v(x)).mean(1))


def test_weights_of_attention_have_no_channels():
    """The channels of k lie on the axis that its product with q sums over."""
    x = torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match="axes"):
        gfo.attach(Scores(), ["drop"], "random", x)
    site = gfo.attach(Scores(), ["v"], "random", x).sites[0]
    assert (site.axes, site.width) == ("BTC", 4)


def test_an_e_step_hands_on_figures_and_no_graph():
    net = made(gfo.GFlowOut(e_steps=3))
    losses = [net.loss(X, Y, n=40, seed=0, step=step) for step in range(3)]
    still = [loss for loss in losses if "nll" in loss.info]
    assert len(still) == 2
    assert not any(figure.requires_grad for loss in losses for figure in loss.info.values())


class Merged(nn.Linear):
    """Keeps its weights as they are in eval mode, and forgets them in its own `train`, as LoRA."""

    def __init__(self):
        super().__init__(6, 8)
        self.cached = None

    def train(self, mode=True):
        self.cached = None
        return super().train(mode)

    def forward(self, x):
        if not self.training and self.cached is None:
            self.cached = self.weight.detach().clone()
        weight = self.weight if self.training else self.cached
        return nn.functional.linear(x, weight, self.bias)


def test_modes_come_back_by_a_modules_own_train():
    torch.manual_seed(0)
    model = nn.Sequential(Merged(), nn.ReLU(), nn.Linear(8, 3))
    net = gfo.attach(model, ["1"], "random", X[:2])
    assert model[0].training and model[0].cached is None  # not that of the eval passes of attach
    first = gfo.predict(net, X)
    with torch.no_grad():
        model[0].weight.mul_(-3)
    assert not torch.allclose(gfo.predict(net, X), first)
    seen = []
    gfo.fit(
        net, (X, Y), (X, Y), epochs=2, batch=20, progress=False, device="cpu",
        on_epoch=lambda row: seen.append(model[0].weight.clone()),
    )  # fmt: skip
    assert not torch.equal(seen[0], seen[1])  # it goes on learning behind a validation
    model[0].eval()  # in a model in train mode: it stays so
    gfo.fit(net, (X, Y), epochs=1, batch=20, progress=False, device="cpu")
    assert not model[0].training and model[2].training
    assert torch.equal(model[0].weight, model[0].cached)


class Sorted(nn.Module):
    """Sorts its rows by length, as packing once asked, and puts the answers back."""

    def __init__(self):
        super().__init__()
        self.body, self.site, self.out = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x, n):
        order = n.argsort(descending=True)
        return self.out(self.site(self.body(x[order])))[order.argsort()]


def test_a_site_whose_rows_stand_in_another_order_is_refused():
    for lengths in ([2, 3, 5, 4], [5, 4, 3, 2]):  # the latter in order, till the batch is doubled
        for site in ("body", "site"):
            with pytest.raises(ValueError, match=f"{site!r} has the rows in another order"):
                gfo.attach(Sorted(), [site], "gflowout", (X[:4], torch.tensor(lengths)))
    alike = X[:1].expand(4, -1)  # no order of such rows can be told from another
    gfo.attach(Sorted(), ["site"], "gflowout", (alike, torch.tensor([2, 3, 5, 4])))


def test_concrete_dropout_asks_who_reads_where_a_module_hides_its_weights():
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.randn(8, 5))

        def forward(self, h):
            return h @ self.mixing

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Mix(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="consumers"):
        gfo.attach(model, ["1"], gfo.ConcreteDropout(), X[:2])
