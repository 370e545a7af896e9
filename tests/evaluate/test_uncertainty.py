"""Uncertainty scores and detection, against closed forms, brute force and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from conftest import toy_model
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

import gfo
from gfo.evaluate import metrics, uncertainty
from gfo.evaluate.masks import distances, passes, predictive_nll
from gfo.evaluate.uncertainty import SCORES, dempster_shafer, detection, energy


def some_logits(masks=5, n=40, classes=4, scale=3.0):
    return scale * torch.randn(masks, n, classes, generator=torch.Generator().manual_seed(0))


def test_dempster_shafer_is_the_formula_under_each_average():
    a = some_logits()
    evidence = a.exp()
    want = {
        "scores": (4 / (4 + evidence.sum(2))).mean(0),
        "logits": 4 / (4 + a.mean(0).exp().sum(1)),
        "evidence": 4 / (4 + evidence.mean(0).sum(1)),
    }
    for average, value in want.items():
        torch.testing.assert_close(dempster_shafer(a, average), value)
    # exp is convex and 1 / (1 + ·) too, so that the three are ordered
    assert (want["evidence"] <= want["scores"] + 1e-6).all()
    assert (want["evidence"] <= want["logits"] + 1e-6).all()


def test_of_one_mask_the_averages_agree_and_rank_as_the_energy():
    a = some_logits(masks=1, n=200)
    first, *others = (dempster_shafer(a, average) for average in uncertainty.AVERAGES)
    for other in others:
        torch.testing.assert_close(first, other)
    assert torch.equal(first.argsort(), energy(a).argsort())
    huge = dempster_shafer(torch.tensor([[[400.0, 0.0]], [[-400.0, -400.0]]]))
    assert huge.isfinite().all() and float(huge) == pytest.approx(0.5)


def test_probability_scores_are_their_formulas():
    a = some_logits()
    probs = a.softmax(2).numpy().astype(float)
    mean = probs.mean(0)
    total = -(mean * np.log(mean)).sum(1)
    each = -(probs * np.log(probs)).sum(2).mean(0)
    for name, want in (
        ("maximum probability", 1 - mean.max(1)),
        ("entropy", total),
        ("mutual information", total - each),
        ("energy", -np.log(np.exp(a.numpy()).sum(2)).mean(0)),
    ):
        np.testing.assert_allclose(SCORES[name](a).numpy(), want, rtol=1e-4, atol=1e-5)
    assert float(SCORES["mutual information"](a[:1]).max()) < 1e-6  # float32 rounding
    sure = torch.tensor([[[200.0, 0.0, 0.0]]])
    assert SCORES["entropy"](sure).item() == 0 and all(
        f(sure).isfinite().all() for f in SCORES.values()
    )


def test_every_score_calls_the_flat_more_uncertain_than_the_sharp():
    flat, sharp = torch.zeros(6, 1, 3), torch.zeros(6, 1, 3)
    sharp[:, :, 0] = 8.0
    disagree = torch.zeros(6, 1, 3)
    disagree[torch.arange(6), 0, torch.arange(6) % 3] = 8.0
    for name, f in SCORES.items():
        if name == "mutual information":
            assert f(disagree) > f(sharp) + 0.5 and f(flat) < 1e-6
        else:
            assert f(flat) > f(sharp), name
    assert math.isclose(SCORES["entropy"](flat).item(), math.log(3), rel_tol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n,m", [(300, 120), (37, 500), (1, 1), (20, 19)])
def test_detection_agrees_with_scikit_learn(n, m, ties):
    gen = np.random.default_rng(n + m)
    inside, outside = gen.normal(0, 1, n), gen.normal(0.8, 1.5, m)
    if ties:
        inside, outside = inside.round(), outside.round()
    found = detection(torch.from_numpy(inside), torch.from_numpy(outside))
    scores, positive = np.concatenate([inside, outside]), np.repeat([0, 1], [n, m])
    assert found["auroc"] == pytest.approx(roc_auc_score(positive, scores))
    assert found["aupr_out"] == pytest.approx(average_precision_score(positive, scores))
    assert found["aupr_in"] == pytest.approx(average_precision_score(1 - positive, -scores))
    false, true, _ = roc_curve(1 - positive, -scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(false[true >= 0.95 - 1e-12][0])
    assert found["prevalence"] == pytest.approx(m / (n + m))


def test_auroc_is_the_share_of_ordered_pairs():
    inside, outside = torch.randn(50), torch.randn(30) + 0.5
    pairs = (outside[:, None] > inside).double().mean()
    assert detection(inside, outside)["auroc"] == pytest.approx(float(pairs))


def test_prevalence_moves_aupr_and_nothing_else():
    gen = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(4000, generator=gen), torch.randn(500, generator=gen) + 1
    few, many = detection(inside, outside), detection(inside, outside.repeat(8))
    for name in ("auroc", "fpr95"):
        assert few[name] == pytest.approx(many[name])
    assert many["aupr_out"] - few["aupr_out"] > 0.2 and few["aupr_in"] - many["aupr_in"] > 0.1


def test_bad_scores_are_named():
    good = torch.rand(5)
    for call, message in (
        (lambda: detection(good[:0], good), "at least one score inside"),
        (lambda: detection(good, torch.tensor([1.0, float("nan")])), "NaN or inf"),
        (lambda: dempster_shafer(some_logits(), "score"), "did you mean 'scores'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- other likelihoods, faults A6


def test_scores_of_coins_are_those_of_coins():
    a = some_logits(classes=3)
    p = a.double().sigmoid().numpy()
    mean = p.mean(0)

    def coins(p):
        return -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1)

    # the predictive probability of the three likelier answers together, over masks
    likelier = mean >= 0.5
    joint = np.where(likelier, p, 1 - p).prod(2).mean(0)
    for likelihood in (gfo.Bernoulli(), gfo.SoftTargets()):
        for name, want in (
            ("entropy", coins(mean)),
            ("mutual information", coins(mean) - coins(p).mean(0)),
            ("maximum probability", 1 - joint),
        ):
            found = SCORES[name](a, likelihood)
            np.testing.assert_allclose(found.numpy(), want, rtol=1e-4, atol=1e-5)
    wrong = SCORES["entropy"](a)  # as if they were classes
    assert not torch.allclose(wrong, SCORES["entropy"](a, gfo.Bernoulli()), rtol=0.1)


def test_scores_of_a_net_are_taken_under_its_own_likelihood():
    x = torch.randn(9, 6)
    net = gfo.attach(*toy_model(classes=4), "gflowout", x, likelihood=gfo.SoftTargets())
    found = SCORES["entropy"](gfo.sample_logits(net, x, 3), net.likelihood)
    p = gfo.predict(net, x, 3)
    want = torch.distributions.Bernoulli(p).entropy().sum(1)
    torch.testing.assert_close(found, want)
    assert (want > math.log(4)).all()  # four coins hold more than one of four classes can


def test_positions_of_an_example_are_summed():
    a = 3 * torch.randn(4, 5, 3, 2, 2)
    net = gfo.Categorical()
    flat = a.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (S, B·H·W, K)
    for name in ("entropy", "mutual information"):
        want = SCORES[name](flat).view(5, 4).sum(1)
        torch.testing.assert_close(SCORES[name](a, net), want, rtol=1e-4, atol=1e-5)
    mean = a.softmax(2).mean(0)
    each = a.softmax(2).gather(2, mean.argmax(1)[None, :, None].expand(4, -1, -1, -1, -1))
    want = 1 - each.flatten(2).prod(2).mean(0)
    torch.testing.assert_close(SCORES["maximum probability"](a, net), want)


@pytest.mark.parametrize("score", SCORES)
def test_a_score_without_a_meaning_is_refused(score):
    a = some_logits()
    with pytest.raises(ValueError) as error:
        SCORES[score](a, gfo.Gaussian())
    assert "Gaussian()" in str(error.value) and "\n" not in str(error.value)
    if "energy" in score or "dempster" in score:
        for likelihood, outputs in ((gfo.Bernoulli(), a), (gfo.Categorical(), a[..., None])):
            with pytest.raises(ValueError, match="a score of class logits"):
                SCORES[score](outputs, likelihood)


def test_scores_of_classes_refuse_what_is_no_distribution_over_classes():
    coins, y = torch.full((6, 3), 0.9), torch.arange(6) % 3
    for call in (
        lambda: metrics.evaluate(coins, y),
        lambda: metrics.scored(coins[None], y),
        lambda: metrics.reliability(coins, y),
        lambda: metrics.selective_accuracy(coins, y, [0.5]),
        lambda: metrics.evaluate(coins / coins.sum(1, keepdim=True), coins),
        lambda: metrics.evaluate(torch.randn(6, 1), torch.randn(6, 1)),
    ):
        with pytest.raises(ValueError, match="no class probabilities"):
            call()


def test_what_masks_buy_is_scored_under_the_likelihood():
    torch.manual_seed(0)
    x, y = torch.randn(9, 6), torch.randn(9, 2)
    net = gfo.attach(*toy_model(classes=4), "gflowout", x, likelihood=gfo.Gaussian())
    found = predictive_nll(net, x, y, samples=7)
    masks = list(passes(net, x, y, "q", 7, 0))
    outputs = torch.stack([run.logits for run in masks]).double()
    normal = torch.distributions.Normal(outputs[..., :2], outputs[..., 2:].exp())
    want = normal.log_prob(y.double()).sum(2).logsumexp(0) - math.log(7)
    assert found["nll_q"] == pytest.approx(-float(want.mean()), rel=1e-5)
    with pytest.raises(ValueError, match="distances compares labels"):
        distances(net, x, y)


def test_scores_in_a_column_are_detected_as_in_a_row():
    gen = torch.Generator().manual_seed(0)
    inside, outside = torch.randn(50, generator=gen), 1 + torch.randn(30, generator=gen)
    assert detection(inside[:, None], outside[:, None]) == detection(inside, outside)
