"""Scores of a rare yes or no: what a threshold decides, what a ranking is worth, and probabilities
freed from the class weights they were trained under."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
)


def decisions(prob: np.ndarray, y: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of saying yes where prob (n,) ≥ threshold, against y (n,) in {0, 1}:
    "_pos" of the positive class, "_macro" the plain mean over both classes. Numbers in [0, 1]; a
    precision is 0 where nothing was said."""
    said = (prob >= threshold).astype(int)
    by_class = precision_recall_fscore_support(y, said, labels=[0, 1], zero_division=0)[:3]
    found = {}
    for name, (no, yes) in zip(("precision", "recall", "f1"), by_class, strict=True):
        found |= {f"{name}_macro": float(no + yes) / 2, f"{name}_pos": float(yes)}
    return found


def ranking(prob: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve (average precision), in [0, 1]."""
    return {
        "auroc": float(roc_auc_score(y, prob)),
        "auprc": float(average_precision_score(y, prob)),
    }


def best_threshold(prob: np.ndarray, y: np.ndarray) -> float:
    """The threshold of highest macro F1, halfway between two neighbouring values of prob (n,), or
    half above or below them all."""
    order = np.argsort(-prob, kind="stable")
    ends = np.concatenate([[prob.max() + 1], prob[order], [prob.min() - 1]])
    said = np.arange(len(prob) + 1)  # yes to the first k, k = 0 … n
    tp, positives = np.append(0, np.cumsum(y[order])), y.sum()
    yes = 2 * tp / np.maximum(said + positives, 1)
    tn = len(prob) - said - (positives - tp)
    no = 2 * tn / np.maximum(2 * len(prob) - said - positives, 1)
    apart = ends[:-1] > ends[1:]  # equal probabilities are decided alike
    k = int(np.argmax(np.where(apart, yes + no, -1.0)))
    return float(ends[k] + ends[k + 1]) / 2


def without_weights(prob: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probabilities (n,) of the population from those learned under class weights (w_0, w_1):
    weighting multiplies the odds of class 1 by w_1 / w_0, and this divides them again."""
    w_no, w_yes = (float(w) for w in weights)
    return prob * w_no / (prob * w_no + (1 - prob) * w_yes)
