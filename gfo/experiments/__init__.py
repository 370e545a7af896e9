"""Experiments: each turns (dataset, method, seed, profile) into the metrics of one record."""

from __future__ import annotations

from ..registry import EXPERIMENTS
from . import rotation  # noqa: F401 - files itself under its name

__all__ = ["EXPERIMENTS"]
