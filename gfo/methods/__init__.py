"""The dropout methods, one file each. Adding one: its file, and its import here."""

from __future__ import annotations

from ..registry import METHODS
from .base import Loss, Method
from .gflowout import GFlowOut
from .id_gflowout import IDGFlowOut
from .random import RandomDropout


def create(name: str, **config) -> Method:
    """The registered method `name`, e.g. create("gflowout", temperature=1.0)."""
    return METHODS[name](**config)


__all__ = ["GFlowOut", "IDGFlowOut", "Loss", "Method", "RandomDropout", "create"]
