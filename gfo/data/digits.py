"""scikit-learn's bundled digits: 1,797 real 8×8 images, no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ..registry import DATASETS
from .splits import Part, Splits, split


@DATASETS.register("digits")
def digits(root=None, seed: int = 0, *, size: int = 28, channels: int = 1) -> Splits:
    """1,000 to train, 200 to validate, 200 to tune, 397 to test; brought to 28×28 (bilinear), so
    that the networks for MNIST run on them. size=32, channels=3 gives them the shape of CIFAR,
    three equal channels. `root` is not needed."""
    return split("digits", digits_part(size, channels), (1000, 200, 200), None, 10, seed)


def digits_part(size: int, channels: int) -> Part:
    """All 1,797 raw images (n, channels, size, size) in [0, 1] and their labels."""
    bunch = load_digits()
    small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]  # (n, 1, 8, 8)
    x = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return x.repeat(1, channels, 1, 1), torch.tensor(bunch.target, dtype=torch.long)
