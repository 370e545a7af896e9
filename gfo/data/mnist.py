"""MNIST through torchvision, which verifies the checksums."""

from __future__ import annotations

from pathlib import Path

from ..registry import DATASETS
from .splits import Part, Splits, data_root, fetch, split


@DATASETS.register("mnist")
def mnist(root: str | Path | None = None, seed: int = 0) -> Splits:
    """50,000 to train, 5,000 to validate, 5,000 to tune (by seed), 10,000 to test; 28×28."""
    root = data_root(root)
    pool, test = (_part(root, train) for train in (True, False))
    return split("mnist", pool, (50_000, 5_000, 5_000), test, 10, seed)


def _part(root: Path, train: bool) -> Part:
    from torchvision.datasets import MNIST  # takes two seconds: only where it is needed

    data = fetch("MNIST", root, "MNIST/raw", lambda: MNIST(str(root), train=train, download=True))
    return data.data[:, None].float() / 255, data.targets.long()  # (n, 28, 28) -> (n, 1, 28, 28)
