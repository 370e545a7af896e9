"""Scores of a rare class's probability: decisions at a threshold, rankings, class weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def decisions(prob: np.ndarray, y: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of saying yes where the probability reaches a threshold.

    Args:
        prob: (n,).
        y: (n,) in {0, 1}.
        threshold: From which on yes is said.

    Returns:
        Numbers in [0, 1]; "_pos" of the positive class, "_macro" the plain mean over both classes.
        A precision is 0 where nothing was said.
    """
    from sklearn.metrics import precision_recall_fscore_support  # here: a second to load

    said = (prob >= threshold).astype(int)
    how: Any = dict(labels=[0, 1], zero_division=0)  # 0 is allowed, whatever its type says
    by_class: Any = precision_recall_fscore_support(y, said, **how)[:3]
    found = {}
    for name, (no, yes) in zip(("precision", "recall", "f1"), by_class, strict=True):
        found |= {f"{name}_macro": float(no + yes) / 2, f"{name}_pos": float(yes)}
    return found


def ranking(prob: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve (average precision), in [0, 1]."""
    from sklearn.metrics import average_precision_score, roc_auc_score  # here: a second to load

    areas = {"auroc": roc_auc_score, "auprc": average_precision_score}
    return {name: float(area(y, prob)) for name, area in areas.items()}


def best_threshold(prob: np.ndarray, y: np.ndarray) -> float:
    """The threshold of highest macro F1.

    Args:
        prob: (n,).
        y: (n,) in {0, 1}.

    Returns:
        Halfway between two neighbouring values of prob, or half above or below them all.
    """
    order = np.argsort(-prob, kind="stable")
    ends = np.concatenate([[prob.max() + 1], prob[order], [prob.min() - 1]])
    said = np.arange(len(prob) + 1)  # yes to the first k, k = 0 … n
    tp, positives = np.append(0, np.cumsum(y[order])), y.sum()
    yes = 2 * tp / np.maximum(said + positives, 1)
    tn = len(prob) - said - (positives - tp)
    no = 2 * tn / np.maximum(2 * len(prob) - said - positives, 1)
    apart = ends[:-1] > ends[1:]  # equal probabilities are decided alike
    k = int(np.argmax(np.where(apart, yes + no, -1.0)))
    return float(max((ends[k] + ends[k + 1]) / 2, np.nextafter(ends[k + 1], np.inf)))


def without_weights(prob: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probabilities of the population from those learned under class weights.

    Weighting multiplies the odds of class 1 by w_1 / w_0, and this divides them again.

    Args:
        prob: (n,), of class 1.
        weights: (w_0, w_1).
    """
    w_no, w_yes = (float(w) for w in weights)
    return prob * w_no / (prob * w_no + (1 - prob) * w_yes)
