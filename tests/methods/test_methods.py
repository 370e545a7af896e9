"""Every method under one contract, and each estimator against enumeration or a closed form.

The contract is tested on every registered method: a new one adds a line to CONFIG only where it
cannot do without an argument.
"""

import copy
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Net, all_masks, member_seeds, shake, toy_model
from gfo_lab.experiments.job import Job
from gfo_lab.experiments.training import train_members
from torch import nn

import gfo
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import draw_noise, generator
from gfo.core.objectives import kl_bernoulli
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import METHODS as REGISTERED
from gfo.evaluate import plots
from gfo.methods import create
from gfo.methods.arm import arm
from gfo.methods.concrete import relaxed_bernoulli
from gfo.methods.consumers import find_consumers
from gfo.methods.contextual import layerwise_kl
from gfo.methods.importance_weighted import log_mean
from gfo.methods.vimco import score_surrogate

METHODS = tuple(REGISTERED)
# name: keywords for the network with a shortcut, where no Sequential tells who reads a site
CONFIG = {"concrete": {"consumers": {"stem.2": "conv", "bn": "out"}}}
HOW = dict(epochs=3, batch=32, seed=3, progress=False, device="cpu")


def mlp(name, **config):
    torch.manual_seed(0)
    model, sites = toy_model()
    return gfo.attach(model, sites, create(name, **config), torch.randn(2, 6))


def convnet(name):
    torch.manual_seed(0)
    return gfo.attach(
        Net(), ["stem.2", "bn"], create(name, **CONFIG.get(name, {})), torch.randn(2, 3, 6, 6)
    )


def points(n=64):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def images(n=24):
    x = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(n) % 4


def weights(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def run_on(net, x, y, key=(0, "test")):
    return BatchPass(net, x, y, key)


def test_a_method_is_rebuilt_from_its_name_and_config_and_named_colours_differ():
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)
    assert plots.LABELS["no-such-method"] == "No such method"
    assert plots.COLORS["no-such-method"].startswith("#")
    for name in METHODS:
        method = create(name)
        assert method.name == name and create(name, **method.config).config == method.config


def test_a_new_file_in_the_room_is_found_by_itself(tmp_path):
    package = Path(gfo.__file__).parent
    shutil.copytree(package, tmp_path / "gfo", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "gfo/methods/half.py").write_text(
        "from gfo.core.registry import METHODS\nfrom gfo.methods.random import RandomDropout\n\n\n"
        "@METHODS.register('half')\nclass Half(RandomDropout):\n    name = 'half'\n"
    )
    ask = "import gfo; print(type(gfo.methods.create('half', keep=0.25)), gfo.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert "gfo.methods.half.Half" in done.stdout and str(tmp_path) in done.stdout


@pytest.mark.parametrize("name", METHODS)
def test_masks_are_0_and_1_and_their_probabilities_sum_to_one(name):
    net, (x, y) = shake(mlp(name)), points(1)
    for masks in (gfo.sample(net, x, y, seed=1), gfo.sample(net, x, seed=1)):
        assert [z.shape for z in masks] == [(1, 4), (1, 3)]
        assert not net.method.binary or all(((z == 0) | (z == 1)).all() for z in masks)
    every = all_masks([4, 3])
    score = gfo.score(net, x.repeat(128, 1), y.repeat(128), every)
    assert score.log_lik.shape == (128,) and score.log_lik.isfinite().all()
    for log_prob, policy in ((score.log_q, net.method.q), (score.log_p, net.method.p)):
        assert (log_prob is None) == (policy is None)
        if log_prob is not None:  # 128 float32 terms
            assert not log_prob.requires_grad
            assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_a_bare_call_and_predict_are_repeatable_and_leave_no_trace(name, make):
    net, (x, y) = shake(make(name)).train(), points() if make is mlp else images()
    before = weights(net)
    probs = gfo.predict(net, x, 5)
    torch.testing.assert_close(probs.sum(1), torch.ones(len(x)), rtol=0, atol=1e-5)
    assert torch.equal(probs, gfo.predict(net, x, 5))
    assert gfo.sample_logits(net, x, 5).shape == (5, *probs.shape)
    gfo.score(net, x, y, gfo.sample(net, x, y))
    assert equal(before, weights(net)) and net.training
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_fit_moves_what_it_should_and_detach_keeps_the_backbone(name, make):
    net, data = make(name), points() if make is mlp else images()
    before = weights(net)
    history = gfo.fit(net, data, **HOW)  # no validation: the last weights stay
    assert len(history) == 3 and history.drop(columns="epoch").notna().all().all()
    after = weights(net)
    still = [k for k in before if torch.equal(before[k], after[k])]
    # ReLUs of a network this small may be dead, and units of a generator with them
    assert not [k for k in still if k.startswith(("model.out", "method.q.nets.0.3"))]
    assert all(not torch.equal(v, after[k]) for k, v in before.items() if k.endswith(".logits"))
    if make is convnet:  # one true pass a step, whatever other passes a method makes
        assert net.model.bn.num_batches_tracked == 3 == net.model.stem[1].num_batches_tracked
    model = net.detach()
    assert not any(m._forward_hooks for m in model.modules())
    assert equal(weights(model), {k[6:]: v for k, v in after.items() if k.startswith("model.")})


@pytest.mark.parametrize("name", METHODS)
def test_a_frozen_backbone_stays_and_a_method_without_masks_to_train_says_so(name):
    net, before = convnet(name), weights(convnet(name).model)
    if net.method.param_groups():
        gfo.fit(net, images(), backbone=False, **HOW)
    else:
        with pytest.raises(ValueError, match="no mask parameters"):
            gfo.fit(net, images(), backbone=False, **HOW)
    assert equal(before, weights(net.model))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_copies_and_files_predict_the_same_and_share_nothing(name, make, tmp_path):
    net, (x, y) = shake(make(name)), points() if make is mlp else images()
    gfo.save(net, tmp_path / "net.pt")
    model = toy_model()[0] if make is mlp else Net()
    twins = copy.deepcopy(net), gfo.load(tmp_path / "net.pt", model)
    want, before = gfo.predict(net, x), weights(net)
    for twin in twins:
        assert torch.equal(gfo.predict(twin, x), want)
        gfo.fit(twin, (x, y), **HOW)
        assert equal(before, weights(net)) and not torch.equal(gfo.predict(twin, x), want)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_broken_after_an_epoch_ends_as_an_unbroken_one(name, tmp_path):
    """Killed inside an epoch: test_fit.py."""
    data, how = points(), HOW | {"checkpoint": tmp_path / "run.pt"}
    whole, part, rest = mlp(name), mlp(name), mlp(name)
    want = gfo.fit(whole, data, data, **HOW)
    gfo.fit(part, data, data, **how | {"epochs": 1})
    got = gfo.fit(rest, data, data, **how)
    assert equal(weights(whole), weights(rest))
    pd.testing.assert_frame_equal(got.drop(columns="seconds"), want.drop(columns="seconds"))


# Deterministic and ensemble


def test_without_dropout_one_pass_predicts():
    net, (x, _) = mlp("deterministic"), points()
    passes = []
    net.model.out.register_forward_hook(lambda *_: passes.append(1))
    probs = gfo.predict(net, x, samples=20)
    assert len(passes) == 1
    assert torch.equal(net(x), net.model(x))
    torch.testing.assert_close(probs, net.model(x).softmax(1))


@pytest.mark.parametrize("name", METHODS)
def test_an_ensemble_is_the_mean_of_its_members(name):
    nets, (x, _) = [], points()
    for seed in range(3):
        torch.manual_seed(seed)
        model, sites = toy_model()
        nets.append(shake(gfo.attach(model, sites, create(name), x), seed=seed))
    ensemble = gfo.Ensemble(nets)
    seeds = member_seeds(3, 5)
    for samples, each in ((1, 1), (7, 3)):
        own = [gfo.predict(net, x, each, seed=s) for net, s in zip(nets, seeds, strict=True)]
        found = gfo.predict(ensemble, x, samples, seed=5)
        torch.testing.assert_close(found, torch.stack(own).mean(0), rtol=0, atol=1e-6)
    logits = gfo.sample_logits(ensemble, x, 6, seed=5)
    torch.testing.assert_close(logits[1::3], gfo.sample_logits(nets[1], x, 2, seed=seeds[1]))
    assert torch.equal(gfo.predict(gfo.Ensemble(nets[0]), x), gfo.predict(nets[0], x))


def test_what_an_ensemble_cannot_answer_it_says_in_one_line(tmp_path):
    net, (x, y) = mlp("random"), points()
    ensemble = gfo.Ensemble([net])
    masks = gfo.sample(net, x)
    for call, message in (
        (lambda: gfo.sample(ensemble, x), "ask a member"),
        (lambda: gfo.score(ensemble, x, y, masks), "ask a member"),
        (lambda: gfo.fit(ensemble, (x, y)), "ask a member"),
        (lambda: gfo.save(ensemble, tmp_path / "e.pt"), "ask a member"),
        (lambda: gfo.predict(ensemble, x, masks=[m[None] for m in masks]), "ask a member"),
        (lambda: gfo.predict(ensemble, x, samples=0), "samples is 0"),
        (lambda: gfo.Ensemble([]), "at least one net"),
        (lambda: gfo.Ensemble([net.model]), "members come from gfo.attach"),
        (lambda: gfo.Ensemble([net, convnet("random")]), "differ in their input shape"),
        (lambda: gfo.EnsembleMember(members=0), "members is 0"),
        (lambda: gfo.MCImproved(repeats=0), "repeats is 0"),
        (lambda: gfo.RandomDropout(masks=0), "masks is 0"),
        (lambda: gfo.ImportanceWeightedDropout(masks=0), "masks is 0"),
        (lambda: gfo.VIMCO(masks=1), "masks is 1, needs to be at least 2"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_members_of_an_experiment_have_seeds_and_checkpoints_of_their_own(tmp_path):
    seeds = []

    def make(seed):  # the same weights each time: what differs afterwards, fit's seed made differ
        seeds.append(seed)
        return mlp("ensemble")

    how = {"epochs": 1, "batch": 32, "lr": LEARNING_RATES}
    job = Job("digits", "ensemble", 7, how | {"method": {"members": 3}}, progress=False)
    net, histories = train_members(make, job._replace(checkpoint=tmp_path / "run.pt"), points())
    assert len(net.nets) == len(histories) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.0.pt", "run.1.pt", "run.2.pt"]
    assert len(set(seeds)) == len({h["nll"].iloc[-1] for h in histories}) == 3
    job = job._replace(method="random", config=how | {"method": {}})
    net, _ = train_members(make, job, points())
    assert isinstance(net, gfo.Attached) and seeds[-1] == 7


# MC dropout, improved


def test_repeated_examples_meet_masks_of_their_own():
    net, (x, y) = mlp("mc-improved", repeats=3, keep=0.5), points()
    run = run_on(net, x, y)
    out = run(source="train", repeat=3)
    assert len(out.log_lik) == 3 * len(x)
    copies = out.masks[0].unflatten(0, (3, len(x)))
    assert not torch.equal(copies[0], copies[1])
    want = gfo.score(net, x, y, [z.unflatten(0, (3, -1))[2] for z in out.masks]).log_lik
    torch.testing.assert_close(out.log_lik[2 * len(x) :], want)  # row s·B + b is row b again
    torch.testing.assert_close(net.method.loss(run, 64).parts["nll"], -out.log_lik.mean())


# Several masks per example: the mean of log-likelihoods, of likelihoods, and VIMCO


def test_random_dropout_takes_several_masks_and_one_is_no_news_to_a_record():
    net, (x, y) = mlp("random", masks=3), points()
    run = run_on(net, x, y)
    log_lik = run(source="train", repeat=3).log_lik.unflatten(0, (3, -1))
    assert not torch.equal(log_lik[0], log_lik[1])
    torch.testing.assert_close(net.method.loss(run, 64).parts["nll"], -log_lik.mean(0).mean())
    assert net.method.config["masks"] == 3 and "masks" not in create("random", masks=1).config
    with pytest.raises(TypeError, match="masks"):
        gfo.MCImproved(masks=2)  # whose argument is `repeats`


@pytest.mark.parametrize("name", ["iw-dropout", "vimco"])
def test_the_loss_is_minus_log_of_the_mean_likelihood_of_k_masks(name):
    net, (x, y), count = shake(mlp(name, masks=3)), points(), 3
    run = run_on(net, x, y)
    out = run(source="p", repeat=count)
    masks = [[z.unflatten(0, (count, -1))[k] for z in out.masks] for k in range(count)]
    each = torch.stack([gfo.score(net, x, y, z).log_lik.exp() for z in masks])
    parts = net.method.loss(run, 64).parts
    torch.testing.assert_close(parts["nll"], -each.mean(0).log().mean())
    assert name == "iw-dropout" or parts["vimco"].item() == 0  # a surrogate has no value
    assert create(name, masks=count).config["masks"] == count


@pytest.mark.parametrize("count", [2, 5])
def test_the_bound_holds_where_likelihoods_underflow(count):
    log_lik = torch.full((count, 1), -1000.0)
    torch.testing.assert_close(log_mean(log_lik), torch.tensor([-1000.0]))
    log_p = torch.zeros(count, 1, requires_grad=True)
    (grad,) = torch.autograd.grad(score_surrogate(log_lik, log_p), log_p)
    assert grad.abs().max() < 1e-3  # equal masks: no one is better, up to float32 of 1000


def enumerated(net, x, y, count):
    """Of all tuples of `count` masks: probability, log-likelihoods and log p, each tuple last."""
    every = all_masks([s.width for s in net.sites])
    total = len(every[0])
    out = gfo.masked_pass(net, x.repeat(total, 1), y.repeat(total), masks=every)
    index = torch.tensor(list(itertools.product(range(total), repeat=count))).T  # (K, 2^(M·K))
    log_p = out.log_p.expand(total)[index]
    return log_p.sum(0).exp(), out.log_lik[index], log_p


def small(name, units, **config):
    """A network whose few units are all alive and matter."""
    torch.manual_seed(0)
    model, sites = toy_model(units)
    with torch.no_grad():
        model.fc1.bias += 1
        model.fc2.bias += 1
        model.out.weight *= 4
    return shake(gfo.attach(model, sites, create(name, **config), torch.randn(2, 6)), scale=0.5)


ENUMERABLE = [((4, 3), 2), ((2, 2), 3)]  # 128² pairs, 16³ triples


@pytest.mark.parametrize("units, count", ENUMERABLE)
def test_the_score_surrogate_completes_the_gradient_of_the_enumerated_bound(units, count):
    """E over all K-tuples of the estimate is the exact ∇ E[log mean p(y|x,z_k)] of p."""
    net, (x, y) = small("vimco", units), points(1)
    prob, log_lik, log_p = enumerated(net, x, y, count)
    assert prob.sum().item() == pytest.approx(1, abs=1e-5)
    exact = q_gradient(net, (prob * log_mean(log_lik)).sum())
    weights = prob.detach()
    found = q_gradient(net, (weights * score_surrogate(log_lik, log_p)).sum())
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-6)
    # the test has power: without the baseline's own mask taken out the estimate is another
    biased = ((log_mean(log_lik) - log_lik).detach() * log_p).sum(0)
    assert (q_gradient(net, (weights * biased).sum()) - exact).abs().max() > 1e-3


def test_the_baseline_of_a_mask_is_made_of_the_others_by_hand():
    likelihoods = (0.5, 0.1, 0.02)
    log_p = torch.zeros(3, 1, requires_grad=True)
    surrogate = score_surrogate(torch.tensor(likelihoods).log()[:, None], log_p)
    (signal,) = torch.autograd.grad(surrogate.sum(), log_p)
    for k, f in enumerate(likelihoods):
        one, other = (g for j, g in enumerate(likelihoods) if j != k)
        baseline = math.log((math.sqrt(one * other) + one + other) / 3)
        want = math.log(sum(likelihoods) / 3) - baseline
        assert signal[k].item() == pytest.approx(want, rel=1e-4), f


@pytest.mark.parametrize("name", ["iw-dropout", "vimco"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_loss_and_its_gradient_are_unbiased(name, count):
    """Against the bound enumerated over all pairs of 128 masks, and all quadruples of 8."""
    net, (x, y) = small(name, (4, 3) if count == 2 else (2, 1), masks=count), points(1)
    prob, log_lik, _ = enumerated(net, x, y, count)
    exact = -(prob * log_mean(log_lik)).sum()
    module = net.method.p if name == "vimco" else net.model
    parameters = [p for p in module.parameters() if p.requires_grad]

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    want, found, values = gradient(exact), [], []
    for k in range(300):
        run = run_on(net, x.repeat(128, 1), y.repeat(128), (0, "chunk", k))
        loss = sum(net.method.loss(run, 64).parts.values())
        values.append(loss.detach())
        found.append(gradient(loss))
    for name_of, draws, truth in (
        ("value", torch.stack(values)[:, None], exact.detach()[None]),
        ("gradient", torch.stack(found), want),
    ):
        mean, error = draws.double().mean(0), draws.double().std(0) / math.sqrt(300)
        moving = error > 1e-9
        z = (mean - truth)[moving] / error[moving]
        # some 400 normals: 5 once in 4,000 runs
        assert moving.any() and z.abs().max() < 5, name_of


@torch.no_grad()
def test_more_masks_tighten_the_bound_toward_the_evidence():
    net, (x, y) = small("iw-dropout", (2, 2)), points(1)
    tuples = [enumerated(net, x, y, count) for count in (1, 2, 3)]
    bounds = [float((prob * log_mean(log_lik)).sum()) for prob, log_lik, _ in tuples]
    prob, log_lik, _ = tuples[0]
    evidence = float((prob * log_lik[0].exp()).sum().log())
    assert bounds[0] < bounds[1] < bounds[2] < evidence


def test_vimco_learns_a_prior_that_beats_the_fixed_one():
    """On a frozen backbone, by the enumerated bound of two masks."""
    data, found = points(256), {}
    for masks in ("fixed", "learned"):
        net = mlp("vimco", masks=2)
        if masks == "learned":
            rates = {"masks": 0.02}
            gfo.fit(net, data, lr=rates, backbone=False, **HOW | {"epochs": 40})
        bounds = []
        for x, y in zip(*(part[:20].split(1) for part in data), strict=True):
            with torch.no_grad():
                prob, log_lik, _ = enumerated(net, x, y, 2)
                bounds.append((prob * log_mean(log_lik)).sum())
        found[masks] = float(torch.stack(bounds).mean())
    assert found["learned"] > found["fixed"] + 0.01


# Concrete


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_relaxed_sampler_has_its_distribution_function(temperature):
    n, logit = 200_000, torch.tensor(0.7)
    draws = relaxed_bernoulli(logit, torch.rand(n, generator=generator(0)), temperature)
    s = torch.linspace(0.01, 0.99, 99)
    exact = torch.sigmoid(temperature * torch.logit(s) - logit)
    seen = torch.searchsorted(draws.sort().values, s, right=True) / n
    # Kolmogorov: the largest gap exceeds 1.95 / √n once in 1,000
    assert (seen - exact).abs().max() < 1.95 / math.sqrt(n)


def test_the_relaxed_sampler_becomes_the_mask_of_the_same_noise():
    units, logits = torch.rand(10_000, generator=generator(0)), torch.tensor(0.7)
    hard = (units < torch.sigmoid(logits)).float()
    relaxed = relaxed_bernoulli(logits, units, 1e-4)
    # z is within 1e-3 of 0 or 1 unless logit(u) is within 1e-4·logit(.999) = 7e-4 of the logit,
    # which has a probability of about 2·7e-4·σ'(0.7) = 3e-4: 3 of 10,000
    assert ((relaxed - hard).abs() > 1e-3).sum() < 15
    soft = relaxed_bernoulli(logits, units, 0.1)
    assert torch.equal((soft > 0.5).float(), hard)  # at any temperature the same side of ½


def test_the_relaxed_gradient_at_low_temperature_is_that_of_the_bernoulli_mean():
    """d E[f(z)] / d logit for f(z) = z² is σ'(logit) for 0/1 masks; the relaxation is near it."""
    logit = torch.tensor(0.3, requires_grad=True)
    n, exact = 400_000, torch.sigmoid(torch.tensor(0.3)) * torch.sigmoid(torch.tensor(-0.3))
    units = torch.rand(n, generator=generator(0))
    per_draw = torch.autograd.grad(
        relaxed_bernoulli(logit.expand(n).contiguous(), units, 0.1).square().mean(), logit
    )[0]
    # bias of order temperature² (0.01); standard error of a derivative of size 1/t met in a
    # fraction t of draws: √(1/t)·σ'/√n < 0.002
    assert abs(float(per_draw - exact)) < 0.012


def concrete(**config):
    return shake(mlp("concrete", **config))


def test_the_regulariser_is_equation_3_by_hand():
    net, (x, y), length, n = concrete(length_scale=0.3), points(), 0.3, 1000
    loss = net.method.loss(run_on(net, x, y), n)
    drop = (1 - torch.sigmoid(net.method.q.logits.detach())).tolist()
    want_weights = want_masks = 0.0
    for p, consumer, width in zip(drop, (net.model.fc2, net.model.out), (4, 3), strict=True):
        want_weights += length**2 * (1 - p) / 2 * float((consumer.weight.detach() ** 2).sum())
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        want_masks += width * (math.log(2) - entropy)  # −K H(p), up to the constant K ln 2
    assert loss.parts["weights"].item() == pytest.approx(want_weights / n, rel=1e-5)
    assert loss.parts["prior"].item() == pytest.approx(want_masks / n, rel=1e-4)
    assert loss.info["keep_1"].item() == pytest.approx(1 - drop[0], rel=1e-6)


def test_the_mask_part_of_the_regulariser_is_a_kl_over_all_masks():
    net, (x, y) = concrete(), points(1)
    score = gfo.score(net, x.repeat(128, 1), y.repeat(128), all_masks([4, 3]))
    exact = (score.log_q.exp() * (score.log_q - score.log_p)).sum()
    assert net.method.regulariser()[1].item() == pytest.approx(exact.item(), rel=1e-4)
    torch.testing.assert_close(score.log_p, torch.full((128,), -7 * math.log(2)))


def test_masks_are_relaxed_in_training_and_prediction_only_if_asked():
    (x, y), inside = points(), lambda z: ((z > 0) & (z < 1)).any()
    for relaxed in (False, True):
        net = concrete(relaxed=relaxed, temperature=0.5)
        noise = draw_noise(net.sites, len(x), generator(0))
        for source, soft in (("train", True), ("test", relaxed), ("q", False)):
            masks = gfo.masked_pass(net, x, y, noise=noise, source=source).masks
            assert inside(masks[0]) == soft
    loss = net.method.loss(run_on(net, x, y), 64)
    (grad,) = torch.autograd.grad(loss.parts["nll"], net.method.q.logits)
    assert (grad != 0).all()  # the likelihood moves the rates through the relaxed masks


def test_the_reader_of_a_site_is_found_in_sequentials_and_named_elsewhere():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    sites = ["0.2", "1", "1.1"]
    spec = gfo.attach(model, sites, "random", torch.randn(2, 3, 6, 6)).spec
    found = dict(zip([s.name for s in spec.sites], find_consumers(model, spec, {}), strict=True))
    assert found["0.2"] is model[1][1] and found["1"] is found["1.1"] is model[3]
    net = convnet("concrete")
    assert net.method.readers == (net.model.conv, net.model.out)
    assert not any("conv" in name for name in net.method.state_dict())


@pytest.mark.parametrize(
    ("consumers", "message"),
    [
        (None, "tells what reads 'stem.2': pass consumers={'stem.2': …}"),
        ({"stem.2": "conv", "bnn": "out"}, "consumers names 'bnn', which is not a site"),
        ({"stem.2": "bn", "bn": "out"}, "'bn', which is no module with a weight matrix"),
    ],
)
def test_a_site_whose_reader_is_unknown_is_named(consumers, message):
    with pytest.raises(ValueError) as error:
        gfo.attach(
            Net(), ["stem.2", "bn"], gfo.ConcreteDropout(consumers=consumers),
            torch.randn(2, 3, 6, 6),
        )  # fmt: skip
    assert message in str(error.value) and "\n" not in str(error.value)


# Contextual dropout and ARM


def q_gradient(net, loss):
    parameters = list((net.method.q or net.method.p).parameters())
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
    )


def exact_gradient(net, x, y, cost):
    """∇ Σ_z q(z) cost(z) over all masks of two sites, by autograd."""
    masks = all_masks([s.width for s in net.sites])
    count = len(masks[0])
    out = gfo.masked_pass(net, x.repeat(count, 1), y.repeat(count), masks=masks)
    return q_gradient(net, (out.log_q.exp() * cost(out)).sum())


def estimates(net, x, y, loss, chunks=300, each=128):
    """Mean and standard error of a gradient estimated `chunks` times on `each` copies of x."""
    x, y = x.repeat(each, 1), y.repeat(each)
    found = torch.stack(
        [q_gradient(net, loss(run_on(net, x, y, (0, "chunk", k)))) for k in range(chunks)]
    ).double()
    return found.mean(0), found.std(0) / math.sqrt(chunks)


def check_unbiased(estimate, error, exact):
    moving = error > 1e-9  # dead inputs have no gradient either way
    z = (estimate - exact)[moving] / error[moving]
    assert moving.sum() > 100 and z.abs().max() < 5  # some 400 normals: 5 once in 4,000 runs
    assert 0.5 < z.square().mean() < 2  # and the standard error itself is right


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_the_contextual_gradient_is_unbiased_for_two_sites(beta):
    """The whole loss, ARM and closed-form KL, against the enumerated negative ELBO."""
    net, (x, y) = shake(mlp("contextual", beta=beta), scale=0.5), points(1)

    def loss(run):
        parts = net.method.loss(run, 1).parts
        return parts["prior"] + parts["arm"]

    exact = exact_gradient(net, x, y, net.method.cost)
    mean, error = estimates(net, x, y, loss)
    check_unbiased(mean, error, exact)
    # the test has power: without ARM the estimate is many standard errors away
    naive, small = estimates(net, x, y, lambda run: net.method.loss(run, 1).parts["prior"])
    assert ((naive - exact).abs() / (small + 1e-9)).max() > 20


def test_arm_is_unbiased_for_another_policy_and_cost():
    """GFlowOut's q reads label and earlier masks; reverse KL, whose cost has log q in it."""
    net, (x, y) = shake(mlp("gflowout")), points(1)

    def cost(out):
        return (out.log_q - out.log_p - out.log_lik).detach()

    exact = exact_gradient(net, x, y, cost)
    mean, error = estimates(net, x, y, lambda run: arm(run, run(source="q"), cost).mean())
    check_unbiased(mean, error, exact)


def test_the_objective_arm_has_the_gradient_of_the_kl():
    """Of E_q[log q − log R], p being a target; theta and p are left to their own parts."""
    net, (x, y) = shake(mlp("gflowout", objective="arm", beta=2.0), scale=0.5), points(1)
    exact = exact_gradient(
        net, x, y, lambda out: out.log_q - net.method.log_reward(out.log_lik, out.log_p.detach(), 1)
    )
    mean, error = estimates(net, x, y, lambda run: net.method.loss(run, 1).parts["arm"])
    check_unbiased(mean, error, exact)
    loss = net.loss(x, y, n=1)
    assert set(loss.parts) == {"nll", "arm", "prior"} and net.method.log_z is None
    loss.parts["arm"].backward()
    others = (*net.model.parameters(), *net.method.p.parameters())
    assert all(p.grad is None or not p.grad.any() for p in others)


def test_arm_of_one_unit_by_quadrature():
    """E_u[(f(z') − f(z))(u − ½)] = σ'(a) (f(1) − f(0)), on a grid of u."""
    u, a = (torch.arange(100_000) + 0.5) / 100_000, torch.tensor(0.8)
    z, pseudo = (u < torch.sigmoid(a)).float(), (1 - u < torch.sigmoid(a)).float()
    estimate, exact = (3 * (pseudo - z) * (u - 0.5)).mean(), 3 * a.sigmoid() * (-a).sigmoid()
    torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=0)  # the grid's step is 1e-5


def test_pseudo_passes_keep_earlier_masks_flip_one_site_and_leave_no_trace():
    net, (x, y) = shake(convnet("contextual")).train(), images()
    run, seen = run_on(net, x, y), []

    def spy(source="train", draw=0, **how):
        seen.append(how["masks"])
        assert how["forward_only"] and source == "q"
        return run(source=source, draw=draw, **how)

    spy.noise = run.noise
    out = run(source="q")
    before, tracked = weights(net), int(net.model.bn.num_batches_tracked)
    same = run(source="q", masks=out.masks, forward_only=True)  # one function in both passes
    torch.testing.assert_close(net.method.cost(same), net.method.cost(out))
    surrogate = arm(spy, out, net.method.cost)
    assert equal(before, weights(net)) and tracked == 1 and net.model.bn.training
    assert torch.equal(surrogate.detach(), torch.zeros(len(x)))  # its value is 0
    (first, second), units = seen, run.noise().u
    assert first[1] is None and second[0] is out.masks[0]
    for layer, flipped in enumerate((first[0], second[1])):
        keep = torch.sigmoid(out.q_logits[layer])
        assert torch.equal(flipped, (1 - units[layer] < keep).float())


def test_contextual_parts_move_their_own_groups_and_the_kl_is_exact():
    net, (x, y) = shake(mlp("contextual")), points(1)
    masks = all_masks([4, 3])
    out = gfo.masked_pass(net, x.repeat(128, 1), y.repeat(128), masks=masks)
    by_sum = (out.log_q.exp() * (out.log_q - out.log_p)).sum()
    torch.testing.assert_close((out.log_q.exp() * layerwise_kl(out)).sum(), by_sum)
    parts = net.method.loss(run_on(net, *points()), 64).parts
    moved = {
        part: [
            group
            for group, module in (("model", net.model), ("q", net.method.q), ("p", net.method.p))
            if any(
                g is not None and g.abs().max() > 0
                for g in torch.autograd.grad(
                    value, list(module.parameters()), allow_unused=True, retain_graph=True
                )
            )
        ]
        for part, value in parts.items()
    }
    assert moved == {"nll": ["model"], "prior": ["q", "p"], "arm": ["q"]}


@pytest.mark.parametrize("name, settings", [
    ("contextual", {}), ("gflowout", {}), ("gflowout", {"policy": "unitwise"}),
    ("id-gflowout", {"start": "prior"}),
], ids=str)  # fmt: skip
def test_q_and_the_prior_start_at_keep_and_log_z_at_zero(name, settings):
    net, (x, y) = mlp(name, **settings, keep=0.8), points()
    out = gfo.masked_pass(net, x, y, masks=[torch.ones(64, 4), torch.ones(64, 3)])
    for logits in (*out.q_logits, *out.p_logits):
        torch.testing.assert_close(torch.sigmoid(logits), torch.full_like(logits, 0.8))
    assert kl_bernoulli(out.q_logits[0], out.p_logits[0]).abs().max() < 1e-6
    assert out.log_z is None or (out.log_z == 0).all()


def test_q_of_the_data_set_starts_at_one_half_as_on_record_unless_told():
    """Records that are older than `start` say nothing of it."""
    net, (x, y) = mlp("id-gflowout", keep=0.8), points()
    out = gfo.masked_pass(net, x, y, masks=[torch.ones(64, 4), torch.ones(64, 3)])
    for logits in out.q_logits:
        assert (logits == 0).all()
    assert "start" not in net.method.config
    assert gfo.IDGFlowOut(start="prior").config["start"] == "prior"


def test_contextual_never_reads_the_label():
    net, (x, y) = mlp("contextual", keep=0.8), points()
    masks = gfo.sample(shake(net), x, y, seed=2)
    other = gfo.score(net, x, (y + 1) % 3, masks)
    assert torch.equal(gfo.score(net, x, y, masks).log_q, other.log_q)


def test_contextual_improves_its_elbo():
    net, data = mlp("contextual"), points(256)
    rates = {"backbone": 0.01, "masks": 0.01}
    history = gfo.fit(net, data, lr=rates, **HOW | {"epochs": 60})
    elbo = -(history["nll"] + history["prior"])
    # it starts at chance, −ln 3 = −1.1 nats
    assert elbo.iloc[:3].mean() < -0.8 and elbo.iloc[-5:].mean() > -0.6


def test_a_method_with_an_init_of_its_own_is_told_how():
    """It would hide the arguments of a subclass, and `config` could not rebuild it."""
    with pytest.raises(TypeError, match="annotate its arguments as class attributes"):

        class Old(gfo.RandomDropout):
            def __init__(self, keep):
                super().__init__(keep=keep)
