"""Data sets, one file each, as tensors that stay on a device."""

from __future__ import annotations

from pathlib import Path

from ..registry import DATASETS
from . import digits, easy_vqa, hospitals, mnist, vqa_v2  # noqa: F401 - they file themselves
from .splits import Splits
from .transforms import rotate


def load(name: str = "digits", root: str | Path | None = None, seed: int = 0) -> Splits:
    """The data set `name`, split by `seed`.

    root: where its files lie or are downloaded to; by default the folder in the environment
    variable GFO_DATA, else ./data. "digits" needs none. Raises ValueError for an unknown name,
    FileNotFoundError where files are missing and cannot be downloaded.
    """
    return DATASETS[name](root, seed)


__all__ = ["Splits", "load", "rotate"]
