"""Street View House Numbers through torchvision, which verifies the checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..registry import DATASETS
from .splits import Part, Splits, data_root, fetch, split


@DATASETS.register("svhn")
def svhn(
    root: str | Path | None = None,
    seed: int = 0,
    *,
    sizes: Sequence[int] = (65_000, 4_000, 4_000),
) -> Splits:
    """Colour images 32×32 of house numbers, 26,032 to test. sizes: how many of the other 73,257 to
    train, to validate and to tune (by seed)."""
    pool, test = (svhn_part(root, part) for part in ("train", "test"))
    return split("svhn", pool, tuple(sizes), test, 10, seed)


def svhn_part(root: str | Path | None, part: str) -> Part:
    """The raw images (n, 3, 32, 32), bytes, and labels of "train" or "test"."""
    from torchvision.datasets import SVHN  # takes two seconds: only where it is needed

    root = data_root(root)
    holds = f"{part}_32x32.mat"
    data = fetch("SVHN", root, holds, lambda: SVHN(str(root), split=part, download=True))
    return torch.from_numpy(data.data), torch.from_numpy(data.labels).long()
