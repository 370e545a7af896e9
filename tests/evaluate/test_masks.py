"""What the masks of a network do, against closed forms and brute force."""

import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from conftest import all_masks, shake, toy_model

import gfo
from gfo.audit import exact
from gfo.audit.exact_audit import truth
from gfo.core.noise import generator
from gfo.evaluate import masks
from gfo.evaluate.masks import (
    correlations,
    distances,
    layer_dependence,
    passes,
    permutation_p,
    predictive_nll,
)
from gfo.evaluate.stats import pearson


def attached(method, units=(4, 3), **config):
    """(net, x, y) on 8 inputs of 3 classes."""
    torch.manual_seed(0)
    model, sites = toy_model(units=units)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    return gfo.attach(model, sites, gfo.methods.create(method, **config), x), x, y


def follow(net):
    """Make q the same distribution as p: the same weights, none on the label."""
    with torch.no_grad():
        for q, p in zip(net.method.q.nets, net.method.p.nets, strict=True):
            for a, b in zip(q.parameters(), p.parameters(), strict=True):
                a.zero_()[tuple(slice(n) for n in b.shape)] = b
    return net


# --- permutation p-values


def test_p_values_are_uniform_under_independence_and_small_under_dependence():
    gen = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 600, 30, generator=gen)
    p = permutation_p(a, b, permutations=199, seed=0)
    # 600 uniform numbers: the largest gap of their distribution function passes 1.95 / sqrt(600)
    # one time in a thousand (Kolmogorov); 1/200 more because p comes in steps of 1/200
    gap = (p.sort().values - torch.arange(1, 601) / 600).abs().max()
    assert gap < 1.95 / 600**0.5 + 1 / 200
    assert (permutation_p(a, a + 0.1 * b, 199, 0) == 1 / 200).all()  # no shuffle comes near
    assert (permutation_p(a, -a, 199, 0) == 1).all()  # one-sided


def test_p_value_agrees_with_every_permutation_of_five():
    gen = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 40, 5, generator=gen)
    every = torch.stack([pearson(a[:, list(s)], b) for s in permutations(range(5))])
    want = (every >= pearson(a, b) - 1e-6).float().mean(0)  # the identity is a tie
    p = permutation_p(a, b, permutations=2000, seed=0)
    assert (p - want).abs().max() < 4 * 0.5 / 2000**0.5  # four sd of a share of 2,000


def test_a_constant_row_ranks_nothing():
    a = torch.randn(3, 20)
    assert (permutation_p(a, torch.ones(3, 20), 99, 0) == 1).all()


# --- correlations


def exact_correlations(net, x, y):
    """The limits of both correlations over all masks, weighted by q; means over examples."""
    score = exact.score_all(net, x, y)
    log_q, log_r, _ = truth(net, x, y)
    log_p, weight = score.log_p.double()[: len(log_q)], log_q.exp()

    def corr(a, b):
        a, b = (t - (weight * t).sum(1, keepdim=True) for t in (a, b))
        cov, va, vb = ((weight * t).sum(1) for t in (a * b, a * a, b * b))
        return float((cov / (va * vb).sqrt()).mean())

    return corr(log_q, log_r), corr(log_q - log_p, log_r - log_p)


@pytest.mark.parametrize("method", ["gflowout", "id-gflowout"])
def test_correlations_agree_with_enumeration(method):
    net, x, y = attached(method)
    shake(net)
    found = correlations(net, x, y, masks=1000, permutations=9)
    reward, data = exact_correlations(net, x, y)
    # sd of a correlation of 1,000 pairs is at most 0.03, of the mean of eight about 0.01
    assert found["correlation_reward"] == pytest.approx(reward, abs=0.05)
    assert found["correlation_data"] == pytest.approx(data, abs=0.05)


def test_q_that_copies_p_correlates_with_the_reward_and_not_with_the_data():
    net, x, y = attached("gflowout")
    follow(shake(net, scale=1.0))
    found = correlations(net, x, y, masks=200, permutations=99)
    assert found["correlation_reward"] > 0.4 and found["correlation_reward_significant"] == 1
    assert found["correlation_data"] == found["correlation_data_significant"] == 0


def test_fixed_prior_has_one_correlation():
    net, x, y = attached("gflowout", prior=0.5)
    found = correlations(shake(net), x, y, masks=50, permutations=99)
    assert found["correlation_reward"] == pytest.approx(found["correlation_data"], abs=1e-4)


def test_no_q_no_correlation():
    assert correlations(*attached("random")) == {}


# --- distances


def binomial_gap(n, keep):
    """E|X − Y| / n of two independent Binomial(n, keep)."""
    prob = [math.comb(n, k) * keep**k * (1 - keep) ** (n - k) for k in range(n + 1)]
    return sum(a * b * abs(i - j) for i, a in enumerate(prob) for j, b in enumerate(prob)) / n


@pytest.mark.parametrize("samples, keep", [(1, 0.5), (1, 0.3), (20, 0.5), (20, 0.3)])
def test_random_masks_show_the_closed_form_and_chance_the_same(samples, keep):
    assert binomial_gap(1, keep) == pytest.approx(2 * keep * (1 - keep))
    torch.manual_seed(0)
    model, sites = toy_model(units=(300, 200))
    x, y = torch.randn(40, 6), torch.arange(40) % 2
    net = gfo.attach(model, sites, gfo.RandomDropout(keep=keep), x)
    want = 500 * binomial_gap(samples, keep)
    for name, value in distances(net, x, y, samples=samples).items():
        # "chance" estimates keep from 40·samples masks, which lowers it by about 1/(40·samples)
        slack = 0.015 + ("chance" in name) / (40 * samples)
        assert value == pytest.approx(want, rel=slack), name


def test_distances_of_known_masks(monkeypatch):
    """Four inputs, two a class, the same mask in every sample: distances counted by hand."""
    z = [torch.tensor([[1.0, 1], [1, 1], [0, 0], [0, 1]]), torch.tensor([[1.0], [0], [0], [0]])]
    monkeypatch.setattr(masks, "sample", lambda *a, **k: z)
    net = SimpleNamespace(method=SimpleNamespace(shared=False))
    found = distances(net, torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), samples=3)
    assert found["distance_within"] == 1  # 0–1 and 2–3 differ in one bit each
    assert found["distance_between"] == (3 + 2 + 2 + 1) / 4


def test_distances_of_no_masks_are_refused():
    with pytest.raises(ValueError, match="samples"):
        distances(*attached("gflowout"), samples=0)


def test_a_shared_mask_has_no_distance():
    found = distances(*attached("id-gflowout"))
    assert set(found.values()) == {0.0}


# --- predictive NLL


def test_predictive_nll_is_the_direct_average():
    """With the masks that the function draws, averaged mask by mask."""
    net, x, y = attached("gflowout")
    found = predictive_nll(shake(net), x, y, samples=7, seed=3)
    assert list(found) == ["nll_p", "nll_q", "nll_shuffled", "nll_uniform"]
    other = torch.randperm(len(y), generator=generator(3, "other"))

    def nll(masks):
        likelihood = [gfo.score(net, x, y, z).log_lik.exp() for z in masks]
        return -float(torch.stack(likelihood).mean(0).log().mean())

    p, q = ([r.masks for r in passes(net, x, y, source, 7, 3)] for source in ("test", "q"))
    shuffled = [[layer[other] for layer in z] for z in p]
    for name, drawn in (("p", p), ("q", q), ("shuffled", shuffled)):
        # probabilities are float32: their log is good to 1e-6 or so
        assert found[f"nll_{name}"] == pytest.approx(nll(drawn), abs=1e-5), name


@pytest.mark.slow
def test_predictive_nll_of_many_masks_agrees_with_enumeration():
    net, x, y = attached("gflowout")
    shake(net)
    score = exact.score_all(net, x, y)
    found = predictive_nll(net, x, y, samples=1500)
    uniform = torch.full_like(score.log_p, -7 * math.log(2))
    for name, log_weight in (("p", score.log_p), ("q", score.log_q), ("uniform", uniform)):
        want = -float((log_weight + score.log_lik).logsumexp(1).mean())
        assert found[f"nll_{name}"] == pytest.approx(want, abs=0.02), name


def test_shuffling_a_shared_mask_changes_nothing():
    found = predictive_nll(*attached("id-gflowout"))
    assert found["nll_shuffled"] == pytest.approx(found["nll_p"], abs=1e-9)
    assert "nll_q" not in predictive_nll(*attached("random"))


# --- dependence between layers


def test_independent_layers_have_none():
    assert layer_dependence(*attached("random")) == pytest.approx([0], abs=1e-9)
    assert layer_dependence(*attached("gflowout", earlier=False))[0] == pytest.approx(0, abs=1e-9)


def test_a_copied_bit_counts_log_2(monkeypatch):
    """Layer 2 has three units: two copy fair bits of layer 1, one is a fair coin."""
    bits = torch.tensor([[1.0, 1], [1, 0], [0, 1], [0, 0]])
    runs = [
        SimpleNamespace(p_logits=[torch.zeros(1, 2), torch.tensor([[*(80 * z - 40), 0.0]])])
        for z in bits
    ]
    monkeypatch.setattr(masks, "passes", lambda *a, **k: iter(runs))
    net = SimpleNamespace(method=SimpleNamespace(test="p", p=True), sites=[0, 1])
    found = layer_dependence(net, None, None)
    assert found == pytest.approx([2 * math.log(2)], abs=1e-6)


@pytest.mark.slow
def test_layer_dependence_agrees_with_enumeration():
    """Σ_i I(z_2i; z_1 | x) over the 16 first-layer masks, and it bounds I(z_2; z_1 | x)."""
    net, x, y = attached("gflowout")
    shake(net, scale=1.0)
    first, second = all_masks((4,))[0], all_masks((3,))[0]

    def entropy(prob, dim):
        return -(prob * prob.clamp_min(1e-30).log()).sum(dim)

    log_p = exact.score_all(net, x, y).log_p.double().exp().unflatten(1, (16, 8))  # p(z_1, z_2)
    assert len(first) == 16 and len(second) == 8  # `all_masks` order: the first layer leads
    weight = log_p.sum(2)  # p(z_1), (B, 16)
    given = log_p / weight[..., None]
    joint = entropy(log_p.sum(1), 1) - (weight * entropy(given, 2)).sum(1)  # I(z_2; z_1)
    keep = torch.einsum("bfs,si->bfi", given, second.double())  # (B, 16, 3)
    mixed = (weight[..., None] * keep).sum(1)

    def coin(t):
        return entropy(torch.stack([t, 1 - t]), 0)

    units = (coin(mixed) - (weight[..., None] * coin(keep)).sum(1)).sum(1)
    assert (joint <= units + 1e-6).all() and units.mean() > 0.05
    found = layer_dependence(net, x, y, samples=1500)
    assert found == pytest.approx([float(units.mean())], rel=0.07)


# --- a network that answers NaN (faults A9): correlations and distances were 0, the rest NaN

HELPERS = {
    "correlations": lambda net, x, y: correlations(net, x, y, masks=8, permutations=9),
    "distances": distances,
    "divergences": masks.policy_divergences,
    "keep": masks.keep_probabilities,
    "dependence": layer_dependence,
    "diagnose": lambda net, x, y: gfo.diagnose(net, x, y, 32),
}


CASES = [(name, where) for name in HELPERS for where in ("q", "p", "model")]


# distances are of the masks of the test, for which nobody asks q
@pytest.mark.parametrize("name, where", [case for case in CASES if case != ("distances", "q")])
def test_nan_is_refused_not_averaged(name, where):
    net, x, y = attached("gflowout")
    with torch.no_grad():
        next((net.model if where == "model" else getattr(net.method, where)).parameters())[0] = (
            torch.nan
        )
    with pytest.raises(ValueError, match="the network answers NaN") as error:
        HELPERS[name](net, x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0.0, 1.0, 1.5])
def test_divergences_from_coins_that_there_are_not_are_refused(keep):
    with pytest.raises(ValueError, match="needs to lie strictly between 0 and 1"):
        masks.policy_divergences(*attached("gflowout"), keep=keep)


@pytest.mark.parametrize("name", HELPERS)
def test_helpers_check_their_labels(name):
    net, x, y = attached("gflowout")
    for wrong in (y[:5], y.float() if name == "distances" else y + 9):  # any classes have distances
        with pytest.raises(ValueError, match="y has shape|labels run|compares labels"):
            HELPERS[name](net, x, wrong)
