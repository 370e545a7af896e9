"""What the network's output says about y: one object used alike in loss, reward and `score`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Categorical:
    """One of K classes: logits (B, K), labels y (B,) integer in 0…K−1.

    Class weights make log p(y | x, z) count w_y times in loss, reward, `score` and early stopping
    alike, which is Bayes' rule with p(y | x, z)^{w_y}. They are taken as they are: with a mean of 1
    over the training labels (scikit-learn's `compute_class_weight("balanced", …)`) prior and
    likelihood keep their proportion. `probs` is p(y | x, z) whatever the weights.

    Args:
        weights: K positive numbers, for classes of unequal size.

    Raises:
        ValueError: For weights that are not positive numbers.
    """

    def __init__(self, weights: Sequence[float] | Tensor | None = None):
        w = None if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if w is not None and (w.dim() != 1 or not ((w > 0) & w.isfinite()).all()):
            raise ValueError(f"weights are {weights}, need to be positive numbers, one per class")
        self.weights = w

    def __repr__(self) -> str:
        return f"Categorical({'' if self.weights is None else self.weights.tolist()})"

    def log_lik(self, logits: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, z), times w_y, shape (B,), in nats."""
        weights = None if self.weights is None else self.weights.to(logits.device)
        return -F.cross_entropy(logits.float(), y, weights, reduction="none")

    def probs(self, logits: Tensor) -> Tensor:
        """p(· | x, z), shape (..., K)."""
        return logits.float().softmax(-1)

    def predictive_nll(self, probs: Tensor, y: Tensor) -> Tensor:
        """−log of the mask-averaged predictive at y, times w_y, shape (B,), in nats."""
        tiny = torch.finfo(probs.dtype).tiny
        nll = -probs.gather(1, y[:, None]).squeeze(1).clamp_min(tiny).log()  # (B, 1) -> (B,)
        return nll if self.weights is None else nll * self.weights.to(y.device)[y]

    def encode(self, y: Tensor, classes: int) -> Tensor:
        """What q and log Z read of y: one-hot, shape (B, K)."""
        return F.one_hot(y, classes).float()

    def check(self, y: Tensor, batch: int, classes: int) -> None:
        """Check labels.

        Args:
            y: Labels, (B,).
            batch: How many there have to be.
            classes: K, how many there are.

        Raises:
            ValueError: Unless y is `batch` integer labels in 0…K−1 and the class weights are K.
        """
        if self.weights is not None and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} class weights, the network has {classes} logits")
        if y.dim() != 1 or len(y) != batch:
            raise ValueError(f"y has shape {tuple(y.shape)}, needs ({batch},): one label per row")
        if y.dtype != torch.int64:
            raise ValueError(f"y has dtype {y.dtype}, needs integer labels, int64: use y.long()")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels run {low}…{high}, but the network has classes 0…{classes - 1}"
            )


class SoftTargets:
    """K answers, each right to a degree: logits (B, K), targets y (B, K) in [0, 1].

    Σ_k y_k log σ(a_k) + (1 − y_k) log(1 − σ(a_k)), the binary cross-entropy summed over answers
    with which networks for VQA v2 are trained (Teney et al., 2018). For targets of 0 and 1 it is
    the log-likelihood of K coins; `probs` are K such probabilities and do not sum to 1.
    """

    def __repr__(self) -> str:
        return "SoftTargets()"

    def log_lik(self, logits: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, z), shape (B,), in nats."""
        return -F.binary_cross_entropy_with_logits(logits.float(), y, reduction="none").sum(-1)

    def probs(self, logits: Tensor) -> Tensor:
        """The probability that each answer is right, shape (..., K)."""
        return logits.float().sigmoid()

    def predictive_nll(self, probs: Tensor, y: Tensor) -> Tensor:
        """The same cross-entropy of the mask-averaged probabilities, shape (B,), in nats."""
        tiny = torch.finfo(probs.dtype).tiny  # of 1 − p too, which float32 rounds to 0
        yes, no = probs.clamp_min(tiny).log(), (1 - probs).clamp_min(tiny).log()
        return -(y * yes + (1 - y) * no).sum(-1)

    def encode(self, y: Tensor, classes: int) -> Tensor:
        """What q and log Z read of y: the targets themselves, shape (B, K)."""
        return y.float()

    def check(self, y: Tensor, batch: int, classes: int) -> None:
        """Check targets.

        Args:
            y: Targets, (B, K).
            batch: How many rows there have to be.
            classes: K, how many there are.

        Raises:
            ValueError: Unless y holds `batch` rows of K float targets in [0, 1].
        """
        if y.shape != (batch, classes):
            raise ValueError(f"y has shape {tuple(y.shape)}, needs ({batch}, {classes}) targets")
        if not y.is_floating_point():
            raise ValueError(f"y has dtype {y.dtype}, needs soft targets: use y.float()")
        if not ((y >= 0) & (y <= 1)).all():  # not so for NaN either
            raise ValueError(f"soft targets run {y.min():g}…{y.max():g}, need to lie in [0, 1]")
