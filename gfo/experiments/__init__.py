"""Experiments: each turns (dataset, method, seed, profile) into the metrics of one record."""

from __future__ import annotations

from ..registry import EXPERIMENTS
from . import (  # noqa: F401 - they file themselves
    adaptation,
    audit,
    cifar,
    cifar_variations,
    easy_vqa,
    icu,
    icu_tune,
    masks,
    prior,
    rotation,
    table1,
    tune,
    variations,
)  # fmt: skip

__all__ = ["EXPERIMENTS"]
