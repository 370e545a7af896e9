"""Backbones: each knows its layers and where masks go, and nothing of methods."""

from __future__ import annotations

from torch import nn

from ..registry import MODELS
from .mlp import mlp


def build(name: str, **config) -> tuple[nn.Module, list[str]]:
    """The registered model `name` and the names of its mask sites."""
    return MODELS[name](**config)


__all__ = ["build", "mlp"]
