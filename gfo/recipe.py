"""Names in a config for what `fit` takes as functions: optimiser, schedule, augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .data import crop_flip
from .fit import adam, pick_device
from .registry import Registry

OPTIMIZERS = Registry("optimizer")
AUGMENTS = Registry("augmentation")

OPTIMIZERS["adam"] = adam
OPTIMIZERS["sgd"] = lambda params, lr: torch.optim.SGD(
    params, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
)
AUGMENTS["none"] = None
AUGMENTS["crop-flip"] = crop_flip


def recipe(config: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments of `fit` for the entries "optimizer" (of the backbone; the mask networks
    and log Z keep Adam), "schedule", "augment" and "bf16" of a config, as far as it has them.
    "bf16" asks for bfloat16 where `device` computes in it, see `computes_bf16`."""
    backbone = OPTIMIZERS[config.get("optimizer", "adam")]

    def optimizer(name: str, params: list) -> torch.optim.Optimizer:
        return (backbone if name == "backbone" else adam)(params, config["lr"][name])

    return {
        "optimizer": optimizer, "schedule": config.get("schedule"),
        "augment": AUGMENTS[config.get("augment", "none")],
        "bf16": config.get("bf16", False) and computes_bf16(device),
    }  # fmt: skip


def computes_bf16(device: str | torch.device) -> bool:
    """Whether `device` has instructions for bfloat16. A processor without them emulates it: a step
    of the narrow ResNet-18 took 13 times as long as in float32 on one with AVX2 alone."""
    if pick_device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu, if it is new
    return any(getattr(torch.cpu, name, bool)() for name in asked)
