"""Experiments: each turns (dataset, method, seed, profile) into the metrics of one record."""

from __future__ import annotations

from ..registry import EXPERIMENTS
from . import audit, masks, prior, rotation, table1, tune  # noqa: F401 - they file themselves

__all__ = ["EXPERIMENTS"]
