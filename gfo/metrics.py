"""Scores of predictive distributions. scikit-learn where it has them, ECE our own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor


def ece(probs: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017): mean |accuracy − confidence| over equal-width
    bins of confidence, weighted by their share. probs (B, K), y (B,); a number in [0, 1]."""
    confidence, hit = probs.max(1), probs.argmax(1) == y
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def reliability(probs: Tensor, y: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram draws: mean confidence, accuracy and share of each of `bins`
    equal-width bins of confidence that is not empty. probs (B, K), y (B,)."""
    confidence, predicted = (t.cpu().double().numpy() for t in probs.max(1))
    hit = predicted == y.cpu().numpy()
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    full = count > 0
    found = {}
    for name, values in (("confidence", confidence), ("accuracy", hit)):
        found[name] = list(np.bincount(which, values, minlength=bins)[full] / count[full])
    return found | {"share": list(count[full] / len(hit))}


def selective_accuracy(probs: Tensor, y: Tensor, coverages: Sequence[float]) -> list[float]:
    """Accuracy on the most confident share of inputs, a number a coverage in (0, 1]."""
    confidence, predicted = probs.max(1)
    hit = (predicted.cpu() == y.cpu()).double()[confidence.cpu().argsort(descending=True)]
    return [float(hit[: max(1, round(c * len(hit)))].mean()) for c in coverages]


def brier(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance between probs (B, K) and the one-hot label, a number in [0, 2]."""
    return float(((probs - np.eye(probs.shape[1])[y]) ** 2).sum(1).mean())


def clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of `values` (n,) where those of one group (n,) may depend on each
    other in any way, and groups are independent (the linearised ratio estimator)."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    count = len(sums)
    if count < 2:
        return float("nan")
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))


def evaluate(probs: Tensor, y: Tensor) -> dict[str, float]:
    """accuracy (0–1), nll (nats an example), brier, ece of a predictive (B, K) against y (B,).

    No example counts more than 36.04 nats: scikit-learn takes probabilities below 2.2e-16 for that.
    """
    p = probs.detach().cpu().double().numpy()
    p = p / p.sum(1, keepdims=True)  # float32 rows miss 1 by 1e-7, which log_loss warns about
    t = y.cpu().numpy()
    return {
        "accuracy": float(accuracy_score(t, p.argmax(1))),
        "nll": float(log_loss(t, p, labels=np.arange(p.shape[1]))),
        "brier": brier(p, t),
        "ece": ece(p, t),
    }
