"""The audit against figures counted another way, and the method against its floors."""

import json
import math

import pandas as pd
import pytest
import torch
from conftest import shake, toy_model
from gfo_lab import cli

import gfo
from gfo.audit import exact, exact_audit, layerwise_optimum, toys, trial
from gfo.core.objectives import log_bernoulli

WIDTHS = (3, 2)


@pytest.fixture(scope="module")
def small():
    """A toy with 2^5 masks and 6 points; not the audit's own net."""
    return toys.toy(WIDTHS, points=6, seed=61)


def tables(lead, seed=0):
    made = layerwise_optimum._tables(lead, WIDTHS)
    gen = torch.Generator().manual_seed(seed)
    return [t.normal_(generator=gen) for t in made]


# --- floors


def test_table_probabilities_are_bernoullis_given_the_prefix():
    logits = tables((4,))
    z1, z2 = exact.all_masks(WIDTHS)
    prefix = (z1 @ torch.tensor([4.0, 2.0, 1.0])).long()
    for point in range(4):
        want = log_bernoulli(logits[0][point], z1) + log_bernoulli(logits[1][point][prefix], z2)
        got = layerwise_optimum.log_prob([t[point] for t in logits])
        torch.testing.assert_close(got.float(), want, rtol=0, atol=1e-5)  # log_bernoulli: float32
    for how in ({}, dict(temperature=2.0, random=0.1)):
        total = layerwise_optimum.log_prob(logits, **how).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))


def test_best_layerwise_finds_a_layerwise_posterior_and_no_worse_one_elsewhere():
    inside = layerwise_optimum.log_prob(tables((5,)))
    log_q, spread = layerwise_optimum.best_layerwise(inside, WIDTHS)
    assert exact.kl(log_q, inside).max() < 1e-5 and spread < 1e-3  # a slow start stops early
    outside = torch.randn(5, 32, dtype=torch.float64).log_softmax(1)
    log_q, _ = layerwise_optimum.best_layerwise(outside, WIDTHS)
    best = exact.kl(log_q, outside)
    rivals = torch.stack(
        [exact.kl(layerwise_optimum.log_prob(tables((5,), s)), outside) for s in range(200)]
    )
    assert (best > 1e-3).all() and (best < rivals.amin(0)).all()


def test_fixed_point_solves_its_equation_and_is_the_best_q_when_sampling_is_on_policy():
    """E_q~[(log Z + log q − log R) ∇log q] = 0: the derivative of log q by a logit is z − σ."""
    torch.manual_seed(1)
    log_reward = torch.randn(3, 32, dtype=torch.float64)
    on, log_z = layerwise_optimum.tempered_fixed_point(
        log_reward, WIDTHS, temperature=1.0, random=0.0
    )
    best, _ = layerwise_optimum.best_layerwise(log_reward, WIDTHS)
    post = log_reward.log_softmax(1)
    torch.testing.assert_close(exact.kl(on, post), exact.kl(best, post), rtol=0, atol=5e-5)
    elbo = (on.exp() * (log_reward - on)).sum(1)
    torch.testing.assert_close(log_z, elbo)  # layer-wise, on-policy: log Z sinks to the ELBO
    coins, _ = layerwise_optimum.tempered_fixed_point(log_reward, WIDTHS, random=1.0)
    hot, _ = layerwise_optimum.tempered_fixed_point(log_reward, WIDTHS, temperature=1e9, random=0.0)
    torch.testing.assert_close(coins, hot)  # both explore uniformly: least squares over all masks
    log_q, log_z = layerwise_optimum.tempered_fixed_point(log_reward, WIDTHS)
    masks = exact.all_masks(WIDTHS)[0].double()
    keep = log_q.exp() @ masks  # q is exact at layer 1: its marginals are the σ
    a = torch.logit(keep)
    tempered = 0.9 * log_bernoulli64(a / 2, masks).exp() + 0.1 / 8
    first = tempered / log_bernoulli64(a, masks).exp()  # q~ / q of layer 1
    conditional = log_q - log_bernoulli64(a, masks)
    pairs = exact.all_masks(WIDTHS)[1].double()
    prob = (conditional.exp()[:, :, None] * pairs).unflatten(1, (8, 4)).sum(2)  # σ given prefix
    b = torch.logit(prob).repeat_interleave(4, 1)
    second = 0.9 * ((pairs * b / 2) - torch.nn.functional.softplus(b / 2)).sum(2).exp() + 0.1 / 4
    q_tilde = first * log_bernoulli64(a, masks).exp() * second
    torch.testing.assert_close(q_tilde.sum(1), torch.ones(3, dtype=torch.float64))
    residual = log_z[:, None] + log_q - log_reward
    gradient = ((q_tilde * residual)[:, :, None] * (masks - keep[:, None])).sum(1)
    assert gradient.abs().max() < 1e-4 and (q_tilde * residual).sum(1).abs().max() < 1e-4


def log_bernoulli64(a, masks):
    """(P, C), (n, C) -> (P, n), float64."""
    return a @ masks.T - torch.nn.functional.softplus(a).sum(1, keepdim=True)


# --- figures


def test_figures_against_pandas_and_hand_counts():
    torch.manual_seed(0)
    log_q = torch.randn(3, 32, dtype=torch.float64).log_softmax(1)
    log_r = torch.randn(3, 32, dtype=torch.float64)
    log_r[:, ::5] = 0.5  # ties
    table = exact_audit.figures(log_q, log_r, torch.zeros(3, dtype=torch.float64))
    for point in range(3):
        a, b = pd.Series(log_q[point].numpy()), pd.Series(log_r[point].numpy())
        row = table.iloc[point]
        assert row["pearson"] == pytest.approx(a.corr(b), abs=1e-9)
        assert row["spearman"] == pytest.approx(a.rank().corr(b.rank()), abs=1e-9)
        post = b - math.log(sum(b.map(math.exp)))
        q = a.map(math.exp)
        assert row["kl"] == pytest.approx(sum(q * (a - post)), abs=1e-9)
        assert row["tv"] == pytest.approx(0.5 * sum((q - post.map(math.exp)).abs()), abs=1e-9)
        w = b - a
        assert row["var_log_w"] == pytest.approx(sum(q * (w - sum(q * w)) ** 2), abs=1e-9)
        assert row["log_z_error"] == pytest.approx(abs(math.log(sum(b.map(math.exp)))), abs=1e-9)
    implied = exact_audit.figures(log_q, log_r, None)  # E_q[log R − log q]: its error is the KL
    assert (implied["log_z_error"] - implied["kl"]).abs().max() < 1e-9
    # a perfect q sampled: TV of 32 cells at 10,000 draws is about √(32 / (2π · 10,000)) = 0.02
    same = exact_audit.figures(log_r.log_softmax(1), log_r, None)
    assert same["tv"].max() < 1e-9 and same["tv_sampled"].between(0.005, 0.05).all()


def test_targets_are_what_each_method_says(small):
    x, y, n = small.x, small.y, 6
    lik = exact.score_all(gfo.attach(small.model, small.sites, "random", x), x, y).log_lik.double()
    for hook_owner in small.model.modules():
        hook_owner._forward_hooks.clear()
    uniform = -5 * math.log(2)
    for method, want in (
        (gfo.GFlowOut(prior=0.5, beta=0.3), 0.3 * lik + uniform),
        (gfo.RandomDropout(keep=0.8), lik + uniform),  # under prior 0.5, not its own 0.8
        (gfo.IDGFlowOut(), (lik.sum(0) + uniform)[None]),
    ):
        with gfo.attach(small.model, small.sites, method, x) as net:
            found = exact_audit.truth(net, x, y)
            torch.testing.assert_close(found.log_reward, want, rtol=1e-5, atol=1e-4)  # float32 sums
            assert found.log_q.shape == want.shape
            table = gfo.audit_masks(net, x, y)
            assert len(table) == (1 if net.method.shared else n)
            if isinstance(method, gfo.RandomDropout):
                log_q = exact.score_all(net, x, y).log_p.double()
                want_kl = exact.kl(log_q, want.log_softmax(1))
                torch.testing.assert_close(torch.tensor(table["kl"].to_numpy()), want_kl)


def test_any_attached_model_can_be_audited():
    """A convolutional network with 3 channels masked."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 3, 3)
    model = torch.nn.Sequential(
        conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3 * 36, 4)
    )
    x, y = torch.randn(5, 1, 8, 8), torch.arange(5) % 4
    net = shake(gfo.attach(model, ["1"], gfo.GFlowOut(), x))
    table = gfo.audit_masks(net, x, y)
    assert len(table) == 5 and table.notna().all(axis=None) and (table["kl"] > 0).all()


# --- the method against its floors, over seeds that no setting was chosen on


@pytest.fixture(scope="module")
def audited():
    return trial.audit_seeds([301, 302])


@pytest.mark.slow
def test_audit_meets_its_targets(audited):
    rows = audited.set_index(["policy", "objective", "sampling"])
    assert rows.loc[("untrained", "none", "none"), "tv"] > 0.15  # the nets are no easy test
    assert rows.loc[("best_layerwise", "kl", "exact"), "kl"] > 0.02
    assert audited["restarts_spread"].max() < 1e-3
    for sampling in ("on-policy", "paper"):
        unit = rows.loc[("unitwise", "tb", sampling)]
        assert unit["tv"] < 0.01 and unit["log_z_error"] < 0.01 and unit["spearman"] > 0.7
        assert abs(rows.loc[("layerwise", "tb", sampling), "gap"]) < 0.02
    assert rows.loc[("layerwise_fixed_point", "tb", "paper"), "gap"] > 0.01  # tempering costs


@pytest.mark.slow
def test_json_is_a_list_with_the_promised_keys(audited, monkeypatch, capsys):
    monkeypatch.setattr(cli, "audit_seeds", lambda *a, **k: audited)
    assert cli.main(["audit", "--json", "--seed", "0", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    names = {(r["policy"], r["objective"], r["sampling"]) for r in rows}
    assert {("unitwise", "tb", "on-policy"), ("layerwise", "tb", "paper")} <= names
    for row in rows:
        for key in ("tv", "kl", "log_z_error", "spearman"):
            assert row[key] is not None and row[f"{key}_sd"] is not None
        assert row["seeds"] == 2 and row["points"] == 40
    assert cli.main(["audit", "--seed", "0", "1"]) == 0
    assert "best_layerwise" in capsys.readouterr().out


@pytest.mark.slow
def test_every_objective_under_every_policy_comes_near_its_floor(small):
    """Short training: within a tenth of the best layer-wise KL; unit-wise, under a tenth of it."""
    fresh = gfo.attach(small.model, small.sites, gfo.GFlowOut(prior=0.5), small.x)
    log_reward = exact_audit.truth(fresh, small.x, small.y).log_reward
    fresh.detach()
    log_q, _ = layerwise_optimum.best_layerwise(log_reward, WIDTHS)
    floor = float(exact.kl(log_q, log_reward.log_softmax(1)).mean())
    for name in ("vargrad", "subtb", "reverse-kl"):
        for policy, limit in (("layerwise", 1.1 * floor), ("unitwise", 0.1 * floor)):
            how = dict(objective=name, policy=policy, masks=8, temperature=1.0, random=0.0)
            net = trial.trained(gfo.GFlowOut(prior=0.5, **how), small, steps=600, lr=0.02)
            assert gfo.audit_masks(net, small.x, small.y)["kl"].mean() < limit, (name, policy)


ABLATIONS = {
    "without y": dict(label=False),
    "without earlier masks": dict(earlier=False),
    "learned prior": dict(prior=None),
    "h before": dict(activation="before"),
    "rescaled": dict(rescale=True),
    "temperature": dict(temperature=1.0),
    "no random masks": dict(random=0.0),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_is_one_call(name, small, monkeypatch):
    monkeypatch.setattr(toys, "toy", lambda *a, **k: small)
    table = trial.audit_toy(gfo.GFlowOut(**{"prior": 0.5, **ABLATIONS[name]}), steps=5)
    assert len(table) == 6 and table.notna().all(axis=None)


def test_a_seed_named_twice_is_one(monkeypatch):
    row = dict.fromkeys(trial.KEYS, "x") | {"kl": 1.0, "floor": 0.5}
    monkeypatch.setattr(trial, "one_seed", lambda seed, *about: [row | {"tv": float(seed)}])
    twice, two = (trial.audit_seeds(seeds) for seeds in ([3, 3], [3, 5]))
    assert math.isnan(twice["tv_sd"].item()) and two["tv_sd"].item() == pytest.approx(2**0.5)
    assert (twice["seeds"].item(), two["seeds"].item()) == (1, 2)


def test_bad_input_gets_one_line(monkeypatch, capsys):
    assert cli.main(["audit", "--hidden", "9", "8"]) == 2
    assert "17 mask bits make 2^17 masks" in capsys.readouterr().err
    for few in (["--points", "0"], ["--hidden", "0"], ["--hidden", "3", "-1"]):
        assert cli.main(["audit", *few]) == 2
        assert "at least one of each" in capsys.readouterr().err
    monkeypatch.setattr(trial, "ATTEMPTS", 1)
    easy = ["--hidden", "1", "--points", "5", "--seed", "0", "--jobs", "1"]
    assert cli.main(["audit", *easy]) == 2
    assert "too easy a test" in capsys.readouterr().err
    with pytest.raises(ValueError, match="0 seeds and 40 points: at least one of each"):
        trial.audit_seeds([])
    with pytest.raises(ValueError, match="needs to be 'default' or 'all'"):
        trial.audit_seeds([0], objectives="tb")
    model, sites = toy_model()
    with pytest.raises(ValueError, match="need a net from gfo.attach, got a Sequential"):
        gfo.audit_masks(model, torch.randn(2, 6), torch.tensor([0, 1]))
    net = gfo.attach(model, sites, "gflowout", torch.randn(2, 6))
    with pytest.raises(ValueError, match="labels run 0…3"):
        gfo.audit_masks(net, torch.randn(2, 6), torch.tensor([0, 3]))


def test_a_network_without_a_distribution_over_masks_is_refused(small):
    net = gfo.attach(small.model, small.sites, "deterministic", small.x)
    try:
        with pytest.raises(ValueError, match="deterministic has no distribution over masks"):
            gfo.audit_masks(net, small.x, small.y)
    finally:
        net.detach()
