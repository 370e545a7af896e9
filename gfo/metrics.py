"""Scores of predictive distributions. scikit-learn where it has them, ECE our own."""

from __future__ import annotations

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


def brier(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance between probs (B, K) and the one-hot label, a number in [0, 2]."""
    return float(((probs - np.eye(probs.shape[1])[y]) ** 2).sum(1).mean())


def evaluate(probs: Tensor, y: Tensor) -> dict[str, float]:
    """accuracy (0–1), nll (nats an example), brier, ece of a predictive (B, K) against y (B,)."""
    p = probs.detach().cpu().double().numpy()
    p = p / p.sum(1, keepdims=True)  # float32 rows miss 1 by 1e-7, which log_loss warns about
    t = y.cpu().numpy()
    return {
        "accuracy": float(accuracy_score(t, p.argmax(1))),
        "nll": float(log_loss(t, p, labels=np.arange(p.shape[1]))),
        "brier": brier(p, t),
        "ece": ece(p, t),
    }
