"""scikit-learn's bundled digits: 1,797 real 8×8 images, no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ..registry import DATASETS
from .splits import Splits, split


@DATASETS.register("digits")
def digits(root=None, seed: int = 0) -> Splits:
    """1,000 to train, 200 to validate, 200 to tune, 397 to test; brought to 28×28 (bilinear), so
    that the networks for MNIST run on them. `root` is not needed."""
    bunch = load_digits()
    small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]  # (n, 1, 8, 8)
    x = F.interpolate(small, size=28, mode="bilinear", align_corners=False)
    y = torch.tensor(bunch.target, dtype=torch.long)
    return split("digits", (x, y), (1000, 200, 200), None, 10, seed)
