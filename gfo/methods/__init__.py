"""The dropout methods, one file each. Adding one: its file, which is found by itself."""

import importlib
import pkgutil

from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method
from gfo.methods.concrete import ConcreteDropout
from gfo.methods.contextual import ContextualDropout
from gfo.methods.deterministic import Deterministic, EnsembleMember
from gfo.methods.gflowout import GFlowOut
from gfo.methods.id_gflowout import IDGFlowOut
from gfo.methods.importance_weighted import ImportanceWeightedDropout
from gfo.methods.masksembles import Masksembles
from gfo.methods.random import MCImproved, RandomDropout
from gfo.methods.vimco import VIMCO

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)  # which files its methods


def create(name: str, **config) -> Method:
    """The registered method `name`, e.g. create("gflowout", temperature=1.0); ValueError for an
    unknown name or a bad argument, TypeError for one that it does not have."""
    return METHODS[name](**config)


__all__ = [
    "ConcreteDropout", "ContextualDropout", "Deterministic", "EnsembleMember", "GFlowOut",
    "IDGFlowOut", "ImportanceWeightedDropout", "Loss", "MCImproved", "Masksembles", "Method",
    "RandomDropout", "VIMCO", "create",
]  # fmt: skip
