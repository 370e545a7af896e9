"""What sampled masks say, against enumeration; and the flags of specimens wrong on purpose."""

import pytest
import torch
from conftest import shake, toy_model

import gfo
from gfo.audit import broken, exact, exact_audit, toys, trial
from gfo.audit.diagnose import diagnose

UNIT = dict(prior=0.5, masks=8, policy="unitwise", temperature=1.0, random=0.0)


def exact_figures(net, x, y):
    """The limits of the figures of `diagnose` as samples grow, over every mask."""
    score = exact.score_all(net, x, y)
    log_q, log_r, log_z = exact_audit.truth(net, x, y)
    log_p = score.log_p.double()[: len(log_q)]
    q, p, w = log_q.exp(), log_p.exp(), log_r - log_q
    evidence = log_r.logsumexp(1)

    def mean(weight, value):
        return (weight * value).sum(1, keepdim=True)

    def corr(a, b):
        a, b = a - mean(q, a), b - mean(q, b)
        return (mean(q, a * b) / (mean(q, a * a) * mean(q, b * b)).sqrt()).squeeze(1)

    prior_w = log_r - log_p
    found = {
        "elbo": mean(q, w),
        "gain": mean(q, w) - mean(p, prior_w),
        "bound": evidence,
        "prior_bound": evidence,
        "log_z": log_z,
        "log_z_error": (log_z - evidence).abs(),
        "ess": (2 * evidence - (2 * w + log_q).logsumexp(1)).exp(),
        "var_log_w": mean(q, (w - mean(q, w)).square()),
        "var_prior": mean(p, (prior_w - mean(p, prior_w)).square()),
        "corr": corr(log_q, log_r),
        "corr_data": corr(log_q - log_p, log_r - log_p),
        "moved": mean(q, log_q - log_p),
    }
    return {name: float(value.mean()) for name, value in found.items()}


@pytest.fixture
def shaken():
    """A q somewhat off the posterior, a learned p, 2^10 masks, 12 examples."""
    torch.manual_seed(0)
    model, sites = toy_model(units=(5, 5))
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    return shake(gfo.attach(model, sites, gfo.GFlowOut(), x), scale=0.1), x, y


@pytest.mark.slow
def test_each_figure_agrees_with_enumeration_within_its_stated_error(shaken):
    """Over 12 sets of masks: z = (value − exact) / error is at most 4, and its rms is of order 1,
    so that the stated error is neither a guess nor a shelter. 12 draws of a standard normal have an
    rms in [0.4, 1.6] but for one time in ten thousand; skew and bias widen that a little."""
    want = exact_figures(*shaken)
    tables = [diagnose(*shaken, samples=256, seed=s) for s in range(12)]
    assert set(tables[0].index) == set(want)
    for name in want:
        z = torch.tensor([(t.loc[name, "value"] - want[name]) for t in tables])
        error = torch.tensor([t.loc[name, "error"] for t in tables])
        if name == "log_z":
            assert z.abs().max() < 1e-6  # nothing is sampled
            continue
        z = z / error
        assert z.abs().max() < 4, (name, z)
        if name != "log_z_error":  # an absolute value: its error is a ceiling
            assert 0.3 < z.square().mean().sqrt() < 1.8, (name, z)


@pytest.mark.slow
def test_bound_lies_between_elbo_and_evidence_and_grows_with_samples(shaken):
    net, x, y = shaken
    evidence = exact_figures(net, x, y)["bound"]
    few, many = (diagnose(net, x, y, samples=s)["value"] for s in (32, 2048))
    assert few["elbo"] < few["bound"] and many["elbo"] < many["bound"]
    assert abs(many["bound"] - evidence) < 0.02  # 2,048 masks: sd of the mean about 0.003


def test_table_has_readings_and_bad_input_one_line(shaken):
    net, x, y = shaken
    table = diagnose(net, x, y)
    assert list(table.columns) == ["value", "error", "flag", "reading"]
    assert all(isinstance(t, str) and t and "\n" not in t for t in table["reading"])
    with pytest.raises(ValueError, match="samples is 8"):
        diagnose(net, x, y, samples=8)
    with pytest.raises(ValueError, match="labels run"):
        diagnose(net, x, y + 1)
    model, sites = toy_model()
    random = gfo.attach(model, sites, "random", x)
    with pytest.raises(ValueError, match="random trains no q toward a posterior"):
        diagnose(random, x, y)


# --- specimens


CORRECT = {
    "unitwise": (gfo.GFlowOut, UNIT, 400),
    "layerwise": (gfo.GFlowOut, dict(prior=0.5, masks=8), 400),
    "learned prior": (gfo.GFlowOut, dict(masks=8), 400),
    "id": (gfo.IDGFlowOut, dict(temperature=1.0, random=0.0), 1500),
}
# name: (class, config, steps, the figure that catches it over all masks, its least value, whether
# diagnose sees it). The least value is the limit's margin: see `broken.LIMITS`.
BROKEN = {
    "mask-blind": (broken.MaskBlind, UNIT, 400, "kl_left", 0.95, True),
    "broadcast": (broken.BroadcastLogZ, UNIT, 400, "log_z_left", 0.9, True),
    "collapsed": (
        broken.Collapsed, UNIT | {"objective": "reverse-kl"}, 400, "kl_left", 2.0, True,
    ),
    "no data": (broken.NoData, dict(temperature=1.0, random=0.0), 400, "kl_left", 0.95, True),
    "tempered prior": (broken.TemperedPrior, dict(masks=8), 400, "prior_aim", 0.01, False),
}  # fmt: skip


@pytest.fixture(scope="module", params=[501, 502])  # seeds no setting was chosen on
def seed_toy(request):
    return request.param, toys.toy(seed=request.param)


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECT)
def test_no_figure_catches_a_correct_implementation(name, seed_toy):
    seed, toy = seed_toy
    make, config, steps = CORRECT[name]
    net = trial.trained(make(**config), toy, seed=seed, steps=steps)
    assert broken.caught(broken.examine(net, toy.x, toy.y)) == []
    if name != "id":  # its layer-wise q misses a mode of p(z|D) on some toys, and is told so
        assert not diagnose(net, toy.x, toy.y)["flag"].any()
    if name == "unitwise":
        leak = broken.examine(net, toy.x, toy.y, broken.leaky_predict)
        assert broken.caught(leak) == ["label_leak"] and leak["label_leak"] > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_specimen_is_caught(name, seed_toy):
    seed, toy = seed_toy
    make, config, steps, figure, least, seen = BROKEN[name]
    net = trial.trained(make(**config), toy, seed=seed, steps=steps)
    found = broken.examine(net, toy.x, toy.y)
    assert figure in broken.caught(found) and found[figure] > least
    evidence = exact_audit.truth(net, toy.x, toy.y).log_reward.logsumexp(1)
    if name == "broadcast" and (evidence - evidence.mean()).abs().mean() < 0.1:
        return  # one log Z for all is then off by little more than the 0.05 nat diagnose allows
    assert diagnose(net, toy.x, toy.y)["flag"].any() == seen


# --- what is bounded, faults A11


def readings(method, likelihood=None, y=None):
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(6, 6), torch.arange(6) % 3 if y is None else y
    net = shake(gfo.attach(model, sites, method, x, likelihood=likelihood), scale=0.1)
    return " ".join(diagnose(net, x, y, samples=32)["reading"])


BITS = (torch.rand(6, 3) > 0.5).float()
EVIDENCE = {
    "the paper's": (gfo.GFlowOut, None, None, "log p(y|x)"),
    "contextual": (gfo.ContextualDropout, None, None, "log p(y|x)"),
    "bits": (gfo.GFlowOut, gfo.Bernoulli(), BITS, "log p(y|x)"),
    "data set": (gfo.IDGFlowOut, None, None, "log p(D)"),
    "exponent": (lambda: gfo.GFlowOut(beta=0.5), None, None, "log Σ_z R(z)"),
    "contextual's": (lambda: gfo.ContextualDropout(beta=2.0), None, None, "log Σ_z R(z)"),
    "data set's": (lambda: gfo.IDGFlowOut(beta=0.1), None, None, "log Σ_z R(z)"),
    "weights": (gfo.GFlowOut, gfo.Categorical([1.0, 2, 3]), None, "log Σ_z R(z)"),
    "degrees": (gfo.GFlowOut, gfo.SoftTargets(), BITS, "log Σ_z R(z)"),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_a_reading_says_log_p_only_of_what_is_log_p(name):
    make, likelihood, y, words = EVIDENCE[name]
    said = readings(make(), likelihood, y)
    assert words in said
    assert not [w for w in ("log p(y|x)", "log p(D)", "log Σ_z R(z)") if w in said and w != words]
