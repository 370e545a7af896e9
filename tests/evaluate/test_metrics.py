"""Scores against closed forms."""

import numpy as np
import pytest
import torch

from gfo.evaluate import metrics
from gfo.evaluate.calibrate import Temperature
from gfo.evaluate.conformal import Sets


def test_ece_by_hand():
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    y = np.array([0, 1, 0, 1])
    # bins of width 1/15: {.9, .9} accuracy .5, {.6} and {.7} accuracy 1
    want = (2 * abs(0.5 - 0.9) + 0.4 + 0.3) / 4
    assert metrics.ece(probs, y) == pytest.approx(want)


def test_a_calibrated_forecast_has_an_ece_near_zero():
    gen = np.random.default_rng(0)
    p = gen.uniform(0.5, 1, 200_000)
    y = (gen.uniform(size=p.size) > p).astype(int)
    assert metrics.ece(np.stack([p, 1 - p], 1), y) < 0.005  # 15 bins of 27,000: noise .002
    assert metrics.ece(np.stack([0.5 + p / 2, 0.5 - p / 2], 1), y) > 0.1


def test_brier_and_nll_of_known_forecasts():
    uniform = torch.full((6, 3), 1 / 3)
    scores = metrics.evaluate(uniform, torch.tensor([0, 1, 2, 0, 1, 2]))
    assert scores["nll"] == pytest.approx(np.log(3), abs=1e-6)
    assert scores["brier"] == pytest.approx(2 / 3, abs=1e-6)
    sure = torch.eye(3)
    scores = metrics.evaluate(sure, torch.tensor([0, 1, 2]))
    assert scores["accuracy"] == 1 and scores["brier"] == 0 and scores["ece"] == 0


def test_answers_as_sure_as_each_other_count_as_their_mean():
    sure = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.6])
    probs, y = torch.stack([sure, 1 - sure], 1), torch.tensor([0, 0, 1, 1, 0])
    # the surest 1, 2, 3 and 5: of the three at 0.8 one is right
    want = [1.0, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 3 / 5]
    for order in (slice(None), torch.tensor([4, 3, 1, 2, 0])):
        found = metrics.selective_accuracy(probs[order], y[order], (0.2, 0.4, 0.6, 1.0))
        assert found == pytest.approx(want)


def test_reliability_recovers_ece_and_selective_accuracy_its_count():
    gen = torch.Generator().manual_seed(0)
    probs = torch.randn(500, 4, generator=gen).softmax(1)
    y = torch.randint(4, (500,), generator=gen)
    r = metrics.reliability(probs, y)
    gap = sum(
        s * abs(a - c)
        for s, a, c in zip(*(r[k] for k in ("share", "accuracy", "confidence")), strict=True)
    )
    assert gap == pytest.approx(metrics.ece(probs.double().numpy(), y.numpy()), abs=1e-9)
    ranked = sorted(range(500), key=lambda i: -float(probs[i].max()))
    hits = [int(probs[i].argmax() == y[i]) for i in ranked]
    want = [np.mean(hits[:250]), np.mean(hits)]
    assert metrics.selective_accuracy(probs, y, (0.5, 1.0)) == pytest.approx(want)


@pytest.mark.parametrize(
    "y", [torch.tensor([0, -1]), torch.tensor([0, 2]), torch.tensor([0.0, 1.0])]
)
@pytest.mark.parametrize("score", [metrics.reliability, metrics.evaluate])
def test_faults_a6_what_is_no_label_is_no_miss(score, y):
    with pytest.raises(ValueError, match="are no class probabilities"):
        score(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), y)


def test_labels_of_pixels_have_the_probabilities_places():
    probs = torch.rand(4, 3, 2, 5).softmax(1)
    y = torch.randint(3, (4, 2, 5))
    assert metrics.evaluate(probs, y)["nll"] > 0
    with pytest.raises(ValueError, match=r"y has shape \(4, 5, 2\), needs \(4, 2, 5\)"):
        metrics.evaluate(probs, y.mT)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_arrays_of_labels_of_any_whole_number_say_what_tensors_say(kind):
    gen = torch.Generator().manual_seed(0)
    probs, y = torch.randn(60, 4, generator=gen).softmax(1), torch.arange(60) % 4
    for score in (
        metrics.evaluate, metrics.reliability, lambda p, t: Temperature(p, t).value,
        lambda p, t: Sets(p, t).threshold, lambda p, t: Sets(probs, y).coverage(p, t),
        lambda p, t: metrics.selective_accuracy(p, t, (0.5, 1.0)),
    ):  # fmt: skip
        assert score(probs, y.numpy().astype(kind)) == score(probs, y)
        assert score(probs.numpy(), y.numpy().astype(kind)) == score(probs, y)
