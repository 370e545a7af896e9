"""Experiments: each turns (dataset, method, seed, profile) into the metrics of one record."""

from __future__ import annotations

from ..registry import EXPERIMENTS
from . import (  # noqa: F401 - they file themselves
    audit,
    icu,
    icu_tune,
    masks,
    prior,
    rotation,
    table1,
    tune,
    variations,
)

__all__ = ["EXPERIMENTS"]
