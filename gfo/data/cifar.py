"""CIFAR-10 and CIFAR-100 through torchvision, which verifies the checksums."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ..registry import DATASETS
from .splits import Part, Splits, data_root, fetch, split

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def cifar(
    name: str,
    root: str | Path | None = None,
    seed: int = 0,
    *,
    sizes: Sequence[int] = (45_000, 2_500, 2_500),
) -> Splits:
    """Colour images 32×32, 10,000 to test. sizes: how many of the other 50,000 to train, to
    validate and to tune (by seed)."""
    pool, test = (cifar_part(name, root, train) for train in (True, False))
    return split(name, pool, tuple(sizes), test, 10 if name == "cifar10" else 100, seed)


def cifar_part(name: str, root: str | Path | None, train: bool) -> Part:
    """The 50,000 or the 10,000 raw images (n, 3, 32, 32), bytes, and labels, in their order."""
    from torchvision import datasets  # takes two seconds: only where it is needed

    root, kind = data_root(root), getattr(datasets, name.upper())
    data = fetch(
        kind.__name__, root, FOLDERS[name], lambda: kind(str(root), train=train, download=True)
    )
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (n, 32, 32, 3) -> (n, 3, 32, 32)
    return x.contiguous(), torch.tensor(data.targets, dtype=torch.long)


DATASETS["cifar10"] = partial(cifar, "cifar10")
DATASETS["cifar100"] = partial(cifar, "cifar100")
