"""The dropout methods, one file each. Adding one: its file, and its import here."""

from __future__ import annotations

from ..registry import METHODS
from .base import Loss, Method
from .concrete import ConcreteDropout
from .contextual import ContextualDropout
from .deterministic import Deterministic
from .ensemble import EnsembleMember
from .gflowout import GFlowOut
from .id_gflowout import IDGFlowOut
from .mc_improved import MCImproved
from .random import RandomDropout


def create(name: str, **config) -> Method:
    """The registered method `name`, e.g. create("gflowout", temperature=1.0)."""
    return METHODS[name](**config)


__all__ = [
    "ConcreteDropout", "ContextualDropout", "Deterministic", "EnsembleMember", "GFlowOut",
    "IDGFlowOut", "Loss", "MCImproved", "Method", "RandomDropout", "create",
]  # fmt: skip
