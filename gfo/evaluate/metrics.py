"""Scores of predictive probabilities: accuracy, likelihood, calibration."""

from collections.abc import Sequence

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
    labels = y.shape == probs.shape[:1] and not y.is_floating_point()
    if not (classes and labels and ((y >= 0) & (y < probs.shape[1])).all()):
        got = f"probs {tuple(probs.shape)} and y {tuple(y.shape)} are no class probabilities (B, K)"
        raise ValueError(f"{got} and labels 0…K−1 (B,): take gfo.predictive(net, x).log_prob(y)")


def brier(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance between probs (B, K) and the one-hot label, a number in [0, 2]."""
    return float(((probs - np.eye(probs.shape[1])[y]) ** 2).sum(1).mean())


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
