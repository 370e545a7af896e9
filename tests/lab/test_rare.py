"""Scores of rare outcomes and intervals over random splits, against brute force."""

import numpy as np
import pytest
import torch
from gfo_lab import stats
from gfo_lab.icu import rare
from sklearn.metrics import f1_score

from gfo.core.likelihood import Categorical


def test_decisions_are_the_means_over_both_classes_by_hand():
    """8 stays, 2 deaths; yes is said to 3, one of them rightly."""
    prob = np.array([0.9, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    y = np.array([1, 0, 0, 1, 0, 0, 0, 0])
    found = rare.decisions(prob, y)
    assert found["precision_pos"] == pytest.approx(1 / 3)
    assert found["recall_pos"] == pytest.approx(1 / 2)
    assert found["f1_pos"] == pytest.approx(2 / 5)
    assert found["precision_macro"] == pytest.approx((1 / 3 + 4 / 5) / 2)
    assert found["recall_macro"] == pytest.approx((1 / 2 + 4 / 6) / 2)
    assert found["f1_macro"] == pytest.approx((2 / 5 + 8 / 11) / 2)


def test_whoever_never_says_yes_has_macro_recall_one_half():
    y = np.array([1] + [0] * 18)
    found = rare.decisions(np.zeros(19), y)
    assert found["recall_macro"] == 0.5 and found["precision_pos"] == 0
    assert found["precision_macro"] == pytest.approx(18 / 19 / 2)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_threshold_beats_every_other(seed):
    """Ties are drawn on purpose; brute force over all midpoints and both ends."""
    rng = np.random.default_rng(seed)
    prob, y = rng.integers(0, 7, 30) / 7, (rng.random(30) < 0.2).astype(int)
    y[0] = 1
    values = np.unique(prob)
    cuts = [values[0] - 1, *(values[1:] + values[:-1]) / 2, values[-1] + 1]
    best = max(f1_score(y, prob >= cut, average="macro", zero_division=0) for cut in cuts)
    mine = rare.decisions(prob, y, rare.best_threshold(prob, y))["f1_macro"]
    assert mine == pytest.approx(best)


def test_the_best_threshold_parts_neighbours_that_no_number_lies_between():
    prob = np.array([0.5, np.nextafter(0.5, 1), 0.0])
    prob[2] = np.nextafter(prob[1], 1)
    y = np.array([0, 1, 1])
    assert rare.decisions(prob, y, rare.best_threshold(prob, y))["f1_macro"] == 1.0


def test_probabilities_are_freed_from_class_weights():
    """A constant predictor that minimises the weighted likelihood says the weighted share; without
    the weights it says the plain share."""
    y, weights = torch.tensor([1] + [0] * 9), (0.5, 6.0)
    weighted = 6 / (6 + 9 * 0.5)
    logits = torch.tensor([[1 - weighted, weighted]]).log().requires_grad_()
    Categorical(weights).log_lik(logits.expand(10, 2), y).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), rtol=0, atol=1e-5)  # the optimum
    assert rare.without_weights(np.array([weighted]), weights) == pytest.approx(0.1)


def test_the_interval_knows_that_splits_share_examples():
    """Against the formula; and random splits of one sample in two keep their promise only when
    corrected: the plain interval of the mean difference misses the truth far too often."""
    d = np.array([0.01, 0.03, -0.01, 0.02])
    found = stats.corrected_resampled_interval(d, share=0.5)
    assert found.error == pytest.approx(d.std(ddof=1) * np.sqrt(0.25 + 0.5))
    # 3.182 is the 97.5 % point of Student's t with 3 degrees of freedom
    assert found.high - found.mean == pytest.approx(3.182446 * found.error, rel=1e-5)
    rng, hits = np.random.default_rng(0), {0.0: 0, 1 / 3: 0}
    for _ in range(200):
        sample = rng.normal(size=80)  # the truth is 0
        means = [rng.permutation(sample)[:20].mean() for _ in range(20)]
        for share in hits:
            interval = stats.corrected_resampled_interval(means, share)
            hits[share] += interval.low < 0 < interval.high
    assert hits[0.0] < 160 and hits[1 / 3] > 170  # 95 % of 200 is 190


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_what_could_be_detected_is_detected_that_often(share):
    sd, rng = 0.05, np.random.default_rng(0)  # of independent splits
    size = stats.detectable(sd * (1 / 20 + share) ** 0.5, 20, share)
    found = [
        stats.corrected_resampled_interval(rng.normal(size, sd, 20), share).low > 0
        for _ in range(400)
    ]
    assert 0.74 < np.mean(found) < 0.86  # 0.80, three standard errors of 400 tries


def test_one_split_has_no_interval():
    with pytest.raises(ValueError, match="two or more"):
        stats.corrected_resampled_interval(np.array([0.1]), 0.3)
