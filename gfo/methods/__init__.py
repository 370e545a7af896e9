"""The dropout methods, one file each. Adding one: its file, and its import here."""

from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method
from gfo.methods.concrete import ConcreteDropout
from gfo.methods.contextual import ContextualDropout
from gfo.methods.deterministic import Deterministic, EnsembleMember
from gfo.methods.gflowout import GFlowOut
from gfo.methods.id_gflowout import IDGFlowOut
from gfo.methods.random import MCImproved, RandomDropout


def create(name: str, **config) -> Method:
    """The registered method `name`, e.g. create("gflowout", temperature=1.0)."""
    return METHODS[name](**config)


__all__ = [
    "ConcreteDropout", "ContextualDropout", "Deterministic", "EnsembleMember", "GFlowOut",
    "IDGFlowOut", "Loss", "MCImproved", "Method", "RandomDropout", "create",
]  # fmt: skip
