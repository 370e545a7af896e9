"""log p(y | x) by masks of p and of q, against the sum over every mask."""

import pytest
import torch
from conftest import shake, toy_model

import gfo
from gfo.audit.exact import score_all
from gfo.evaluate import marginal
from gfo.evaluate.marginal import importance_log_predictive, log_predictive_curve

MANY = 20_000


@pytest.fixture(scope="module")
def coins():
    """(net, x, y, exact): 7 mask bits, 3 yes or no answers, 4 inputs; `score` of all 128 masks."""
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(4, 6), torch.randint(2, (4, 3)).float()
    method = gfo.GFlowOut(objective="vargrad", masks=2)
    net = shake(gfo.attach(model, sites, method, x, likelihood=gfo.Bernoulli()), 0.15)
    with torch.no_grad():
        model.out.weight.mul_(8)  # masks decide which answers come out
    return net, x, y, score_all(net, x, y)


def spread(first, second, count):
    """(mean, its standard error) of `count` draws, given both moments, (B,) each."""
    return first, ((second - first**2) / count).sqrt()


def test_weighed_masks_of_q_sum_to_the_evidence_by_enumeration(coins):
    _, _, _, exact = coins
    log_w = (exact.log_lik + exact.log_p - exact.log_q).double()
    evidence = (exact.log_lik + exact.log_p).double().logsumexp(1)
    # 128 float32 numbers of a few nats each: 1e-6 of a nat per term
    torch.testing.assert_close((exact.log_q.double() + log_w).logsumexp(1), evidence)
    torch.testing.assert_close(exact.log_q.double().logsumexp(1).exp(), torch.ones(4).double())
    assert log_w.std(1).min() > 0.1  # they are no constants


@pytest.mark.parametrize("kind", ["p", "q"])
def test_means_over_many_masks_are_the_evidence(coins, kind):
    net, x, y, exact = coins
    log_lik, log_p, log_q = (t.double() for t in (exact.log_lik, exact.log_p, exact.log_q))
    evidence = (log_lik + log_p).exp().sum(1)
    drawn, value = (log_p, log_lik) if kind == "p" else (log_q, log_lik + log_p - log_q)
    mean, error = spread(evidence, (drawn + 2 * value).exp().sum(1), MANY)
    # each row is one mask, so that nothing is averaged under the logarithm
    rows = [t.repeat_interleave(MANY, 0) for t in (x, y)]
    if kind == "p":
        one = log_predictive_curve(net, *rows, (1,), seed=1)[0]
    else:
        one, ess = importance_log_predictive(net, *rows, 1, seed=1)
        assert torch.allclose(ess, torch.ones(()).double())
    found = one.exp().unflatten(0, (4, MANY)).mean(1)
    assert (found - mean).abs().lt(4 * error).all()
    # the logarithm of a mean of few masks lies below (Jensen), here by far more than the error
    below = one.unflatten(0, (4, MANY)).mean(1)
    assert (below < evidence.log()).all() and below.mean() < evidence.log().mean() - 0.02


def test_more_masks_of_either_kind_end_at_the_evidence(coins):
    net, x, y, exact = coins
    evidence = (exact.log_lik + exact.log_p).double().logsumexp(1)
    curve = log_predictive_curve(net, x, y, (1, 10, MANY), seed=2)
    weighed = importance_log_predictive(net, x, y, MANY, seed=2)
    log_w = (exact.log_lik + exact.log_p - exact.log_q).double()
    for log_prob, drawn, value in (
        (curve[2], exact.log_p.double(), exact.log_lik.double()),
        (weighed.log_prob, exact.log_q.double(), log_w),
    ):
        mean, error = spread(evidence.exp(), (drawn + 2 * value).exp().sum(1), MANY)
        assert (log_prob - evidence).abs().lt(4 * error / mean).all()  # d log m = dm / m
    # (Σ q w)² / Σ q w² of all masks is the limit of the share of masks that count
    share = (2 * evidence - (exact.log_q.double() + 2 * log_w).logsumexp(1)).exp()
    torch.testing.assert_close(weighed.ess / MANY, share, rtol=0.1, atol=0)


def test_a_curve_takes_the_first_masks_and_blocks_do_not_matter(coins, monkeypatch):
    net, x, y, _ = coins
    long = log_predictive_curve(net, x, y, (1, 3, 25, 60))
    torch.testing.assert_close(log_predictive_curve(net, x, y, (1, 3, 25)), long[:3])
    outputs = gfo.sample_logits(net, x, 3, seed=marginal.derive(0, "marginal", 0, 0))
    each = torch.stack([net.likelihood.log_lik(one, y) for one in outputs]).double()
    torch.testing.assert_close(long[1], each.logsumexp(0) - torch.tensor(3.0).log())
    monkeypatch.setattr(marginal, "ROWS", 3)
    torch.testing.assert_close(
        log_predictive_curve(net, x, y, (1, 3))[:, :3],
        log_predictive_curve(net, x[:3], y[:3], (1, 3)),
    )


def test_where_masks_say_nothing_every_mask_counts_and_the_answer_is_exact(coins):
    _, x, y, _ = coins
    model, sites = toy_model()
    torch.nn.init.zeros_(model.out.weight)
    net = gfo.attach(model, sites, gfo.GFlowOut(), x, likelihood=gfo.Bernoulli())
    plain = -torch.nn.functional.binary_cross_entropy_with_logits(
        model.out.bias.expand(4, 3), y, reduction="none"
    ).sum(1)  # fmt: skip
    log_prob, ess = importance_log_predictive(net, x, y, 7)  # q and p start equal
    torch.testing.assert_close(log_prob.float(), plain)
    torch.testing.assert_close(ess, torch.full((4,), 7.0).double())
    torch.testing.assert_close(log_predictive_curve(net, x, y, (1, 9))[1].float(), plain)


def test_methods_without_masks_or_without_q_are_told_apart(coins):
    _, x, y, _ = coins
    model, sites = toy_model()
    net = gfo.attach(model, sites, "deterministic", x, likelihood=gfo.Bernoulli())
    one, many = log_predictive_curve(net, x, y, (1, 50))
    assert torch.equal(one, many)
    for name in ("deterministic", "random", "id-gflowout", "contextual"):
        model, sites = toy_model()
        net = gfo.attach(model, sites, name, x, likelihood=gfo.Bernoulli())
        with pytest.raises(ValueError, match=f"{name} has no q beside its p: use log_pred"):
            importance_log_predictive(net, x, y)
    with pytest.raises(ValueError, match="counts is 0"):
        log_predictive_curve(net, x, y, (0, 1))
