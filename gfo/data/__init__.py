"""Data sets, one file each, as tensors that stay on a device."""

from __future__ import annotations

from pathlib import Path

from ..registry import DATASETS
from . import (  # noqa: F401 - they file themselves under their names
    cifar,
    digits,
    easy_vqa,
    hospitals,
    mnist,
    svhn,
    vqa_v2,
)  # fmt: skip
from .corruptions import corrupt
from .ood import outside
from .published import cifar_c
from .questions import VisualQuestions
from .splits import Splits
from .transforms import crop_flip, random_labels, rotate


def load(
    name: str = "digits", root: str | Path | None = None, seed: int = 0, **how
) -> Splits | VisualQuestions:
    """The data set `name`, split by `seed`.

    root: where its files lie or are downloaded to; by default the folder in the environment
    variable GFO_DATA, else ./data. "digits" needs none. how: further arguments of that data set,
    such as `sizes` of CIFAR. Raises ValueError for an unknown name, FileNotFoundError where files
    are missing and cannot be downloaded.
    """
    return DATASETS[name](root, seed, **how)


__all__ = [
    "Splits", "cifar_c", "corrupt", "crop_flip", "load", "outside", "random_labels", "rotate",
]  # fmt: skip
