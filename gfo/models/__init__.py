"""Backbones: each knows its layers and where masks go, and nothing of methods."""

import inspect
from typing import Any

from torch import nn

from gfo.core.registry import MODELS
from gfo.models.coattention import mcan
from gfo.models.perceptron import mlp, regressor
from gfo.models.resnet import resnet18
from gfo.models.segmentation import unet


def build(name: str, **config) -> tuple[nn.Module, list[str]]:
    """The registered model `name` and the names of its mask sites; ValueError for an unknown name,
    TypeError for an argument that it does not take."""
    return MODELS[name](**config)


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of an experiment's config that the builder of config["model"] takes; ValueError
    for an unknown one."""
    takes = inspect.signature(MODELS[config["model"]]).parameters
    return {name: value for name, value in config.items() if name in takes}


__all__ = ["arguments", "build", "mcan", "mlp", "regressor", "resnet18", "unet"]
