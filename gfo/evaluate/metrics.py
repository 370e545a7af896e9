"""Scores of predictive probabilities: accuracy, likelihood, calibration."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray


def ece(probs: np.ndarray, y: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al., 2017), a number in [0, 1].

    Mean ``|accuracy − confidence|`` over equal-width bins of confidence, weighted by their share.
    Written here since the last bin has to hold a confidence of exactly 1, which float32's softmax
    often rounds to: torchmetrics counts it in a bin of its own (its issue 3510, open in 2026).

    Args:
        probs: (B, K).
        y: (B,).
        bins: How many.
    """
    confidence, accuracy, share = map(np.array, reliability(probs, y, bins).values())
    return float(share @ np.abs(accuracy - confidence))


def reliability(probs: Array, y: Array, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram draws.

    Args:
        probs: (B, K), or as in `per_answer`.
        y: (B,), or as in `per_answer`.
        bins: How many equal-width bins of confidence.

    Returns:
        Mean "confidence", "accuracy" and "share" of each bin that is not empty.
    """
    probs, y = per_answer(probs, y)
    confidence, predicted = (t.cpu().double().numpy() for t in probs.max(1))
    hit = predicted == y.cpu().numpy()
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    full, values = count > 0, {"confidence": confidence, "accuracy": hit}
    sums = {name: np.bincount(which, each, bins)[full] for name, each in values.items()}
    means = {name: list(each / count[full]) for name, each in sums.items()}
    return means | {"share": list(count[full] / len(hit))}


def selective_accuracy(probs: Tensor, y: Tensor, coverages: Sequence[float]) -> list[float]:
    """Accuracy on the most confident share of answers, a number per coverage in (0, 1]. Of answers
    that are as sure as each other, as float32's softmax makes many, each counts as their mean."""
    probs, y = per_answer(probs, y)
    confidence, predicted = (t.cpu() for t in probs.max(1))
    _, which, count = (-confidence).unique(return_inverse=True, return_counts=True)  # surest first
    hits = torch.zeros(len(count)).double().index_add(0, which, (predicted == y.cpu()).double())
    hit = (hits / count).repeat_interleave(count)
    return [float(hit[: max(1, round(c * len(hit)))].mean()) for c in coverages]


def check_classes(probs: Tensor, y: Tensor) -> None:
    """ValueError unless `probs` are distributions over classes and y are labels, at least one."""
    classes = probs.dim() == 2 and bool(((probs.sum(1) - 1).abs() < 0.01).all())
    labels = y.shape == probs.shape[:1] and not y.is_floating_point() and len(y) > 0
    if not (classes and labels and (probs >= 0).all() and ((y >= 0) & (y < probs.shape[1])).all()):
        got = f"probs {tuple(probs.shape)} and y {tuple(y.shape)} are no class probabilities (B, K)"
        raise ValueError(f"{got} and labels 0…K−1 (B,): take gfo.predictive(net, x).log_prob(y)")


def per_answer(probs: Array, y: Array) -> tuple[Tensor, Tensor]:
    """A row for each answer, where an example has several.

    Args:
        probs: Mean probabilities, as `gfo.predict` gives them: of classes, (B, K) or, of positions,
            (B, K, …); or of K yes or no answers, (B, K, …), each a row of two classes.
        y: Labels, (B,) or (B, …), of which those of −100 are left out where there are positions;
            or 0 and 1 as floats, (B, K, …). Both may be arrays.

    Returns:
        (N, K) and (N,).

    Raises:
        ValueError: For anything else, such as answers that are right to a degree.
    """
    probs = torch.as_tensor(probs)
    y = torch.as_tensor(y).to(probs.device)
    if y.is_floating_point():  # coins; −1 is no label, so that degrees are refused
        probs = torch.stack((1 - probs, probs), 1)
        y = torch.where((y == 0) | (y == 1), y, -1).long()
    if y.dim() > 1 and y.shape != (shape := (len(probs), *probs.shape[2:])):
        raise ValueError(f"y has shape {tuple(y.shape)}, needs {shape}, as the probabilities")
    rows, labels = probs.movedim(1, -1).flatten(0, -2) if probs.dim() > 1 else probs, y.flatten()
    if y.dim() > 1 and len(labels) == len(rows):
        rows, labels = rows[labels != -100], labels[labels != -100]
    check_classes(rows, labels)
    return rows, labels.long()


def brier(probs: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance between probs (B, K) and the one-hot label, a number in [0, 2]."""
    return float(((probs - np.eye(probs.shape[1])[y]) ** 2).sum(1).mean())


def evaluate(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of a predictive (B, K) against labels y (B,), or of more answers as in `per_answer`.

    No answer counts more than 36.04 nats: scikit-learn takes probabilities below 2.2e-16 for that.

    Returns:
        "accuracy" (0–1), "nll" (nats per answer), "brier" and "ece".

    Raises:
        ValueError: For anything else, such as degrees or a mean: `gfo.predictive` scores these.
    """
    from sklearn.metrics import log_loss  # here: a second to load

    probs, y = per_answer(probs, y)
    p = probs.detach().cpu().double().numpy()
    p = p / p.sum(1, keepdims=True)  # float32 rows miss 1 by 1e-7, which log_loss warns about
    t = y.cpu().numpy()
    nll = float(log_loss(t, p, labels=np.arange(p.shape[1])))
    accuracy = float((p.argmax(1) == t).mean())
    return {"accuracy": accuracy, "nll": nll, "brier": brier(p, t), "ece": ece(p, t)}


def scored(single: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of the mean of `single` (S, B, K), and of its first mask alone under "_one_mask"."""
    one = {f"{name}_one_mask": value for name, value in evaluate(single[0], y).items()}
    return evaluate(single.mean(0), y) | one
