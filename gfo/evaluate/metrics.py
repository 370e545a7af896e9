"""Scores of predictive probabilities: accuracy, likelihood, calibration, a rare class's ranking."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics
from torch import Tensor


def ece(probs: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017), a number in [0, 1].

    Mean ``|accuracy − confidence|`` over equal-width bins of confidence, weighted by their share.

    Args:
        probs: (B, K).
        y: (B,).
        bins: How many.
    """
    confidence, hit = probs.max(1), probs.argmax(1) == y
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(which, hit - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def reliability(probs: Tensor, y: Tensor, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram draws.

    Args:
        probs: (B, K).
        y: (B,).
        bins: How many equal-width bins of confidence.

    Returns:
        Mean "confidence", "accuracy" and "share" of each bin that is not empty.
    """
    check_classes(probs, y)
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
    """Accuracy on the most confident share of inputs, a number per coverage in (0, 1]."""
    check_classes(probs, y)
    confidence, predicted = probs.max(1)
    hit = (predicted.cpu() == y.cpu()).double()[confidence.cpu().argsort(descending=True)]
    return [float(hit[: max(1, round(c * len(hit)))].mean()) for c in coverages]


def check_classes(probs: Tensor, y: Tensor) -> None:
    """ValueError unless `probs` are distributions over classes and y are labels."""
    classes = probs.dim() == 2 and bool(((probs.sum(1) - 1).abs() < 0.01).all())
    if not classes or y.shape != probs.shape[:1]:
        got = f"probs {tuple(probs.shape)} and y {tuple(y.shape)} are no class probabilities (B, K)"
        raise ValueError(f"{got} and labels (B,): take gfo.predictive(net, x).log_prob(y)")


def brier(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance between probs (B, K) and the one-hot label, a number in [0, 2]."""
    return float(((probs - np.eye(probs.shape[1])[y]) ** 2).sum(1).mean())


def clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of values that depend on each other within groups.

    Those of one group may do so in any way, and groups are independent (the linearised ratio
    estimator).

    Args:
        values: (n,).
        groups: Which group each is of, (n,).

    Returns:
        The error; NaN for a single group.
    """
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    count = len(sums)
    if count < 2:
        return float("nan")
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))


def evaluate(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of a predictive (B, K) against labels y (B,).

    No example counts more than 36.04 nats: scikit-learn takes probabilities below 2.2e-16 for that.

    Returns:
        "accuracy" (0–1), "nll" (nats per example), "brier" and "ece".

    Raises:
        ValueError: For anything else, such as K coins or a mean: `gfo.predictive` scores these.
    """
    check_classes(probs, y)
    p = probs.detach().cpu().double().numpy()
    p = p / p.sum(1, keepdims=True)  # float32 rows miss 1 by 1e-7, which log_loss warns about
    t = y.cpu().numpy()
    return {
        "accuracy": float((p.argmax(1) == t).mean()),
        "nll": float(metrics.log_loss(t, p, labels=np.arange(p.shape[1]))),
        "brier": brier(p, t),
        "ece": ece(p, t),
    }


def scored(single: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of the mean of `single` (S, B, K), and of its first mask alone under "_one_mask"."""
    one = {f"{name}_one_mask": value for name, value in evaluate(single[0], y).items()}
    return evaluate(single.mean(0), y) | one


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
    said = (prob >= threshold).astype(int)
    how: Any = dict(labels=[0, 1], zero_division=0)  # 0 is allowed, whatever its type says
    by_class: Any = metrics.precision_recall_fscore_support(y, said, **how)[:3]
    found = {}
    for name, (no, yes) in zip(("precision", "recall", "f1"), by_class, strict=True):
        found |= {f"{name}_macro": float(no + yes) / 2, f"{name}_pos": float(yes)}
    return found


def ranking(prob: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Areas under the ROC and the precision-recall curve (average precision), in [0, 1]."""
    return {
        "auroc": float(metrics.roc_auc_score(y, prob)),
        "auprc": float(metrics.average_precision_score(y, prob)),
    }


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
    return float(ends[k] + ends[k + 1]) / 2


def without_weights(prob: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Probabilities of the population from those learned under class weights.

    Weighting multiplies the odds of class 1 by w_1 / w_0, and this divides them again.

    Args:
        prob: (n,), of class 1.
        weights: (w_0, w_1).
    """
    w_no, w_yes = (float(w) for w in weights)
    return prob * w_no / (prob * w_no + (1 - prob) * w_yes)
