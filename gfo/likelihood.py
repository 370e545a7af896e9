"""What the network's output says about y: one object used alike in loss, reward and `score`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Categorical:
    """One of K classes; logits (B, K), labels y (B,) integer in 0…K−1."""

    def log_lik(self, logits: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, z), shape (B,), in nats."""
        return -F.cross_entropy(logits.float(), y, reduction="none")

    def probs(self, logits: Tensor) -> Tensor:
        """p(· | x, z), shape (..., K)."""
        return logits.float().softmax(-1)

    def predictive_nll(self, probs: Tensor, y: Tensor) -> Tensor:
        """−log of the mask-averaged predictive at y, shape (B,), in nats."""
        tiny = torch.finfo(probs.dtype).tiny
        return -probs.gather(1, y[:, None]).squeeze(1).clamp_min(tiny).log()  # (B, 1) -> (B,)

    def encode(self, y: Tensor, classes: int) -> Tensor:
        """What q and log Z read of y: one-hot, shape (B, K)."""
        return F.one_hot(y, classes).float()

    def check(self, y: Tensor, batch: int, classes: int) -> None:
        """Raise ValueError unless y is `batch` integer labels in 0…classes−1."""
        if y.dim() != 1 or len(y) != batch:
            raise ValueError(f"y has shape {tuple(y.shape)}, needs ({batch},): one label a row")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise ValueError(f"y has dtype {y.dtype}, needs integer labels: use y.long()")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels run {low}…{high}, but the network has classes 0…{classes - 1}"
            )
