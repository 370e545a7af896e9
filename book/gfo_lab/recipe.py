"""What a config names, as `gfo.fit` and `gfo.attach` take it."""

from functools import partial
from typing import Any

import torch

import gfo
from gfo.core.batch import pick_device
from gfo.core.noise import derive
from gfo.core.registry import Registry
from gfo.train.optim import adam
from gfo_lab.fast_net import whiten

sgd = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)


OPTIMIZERS = Registry("optimizer", {"adam": adam, "sgd": sgd})


AUGMENTS = Registry("augmentation", {"none": None, "crop-flip": gfo.data.crop_flip})


def recipe(config: dict[str, Any], device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments of `fit` for what a config names.

    Args:
        config: The entries "optimizer" (of the backbone; the mask networks and log Z keep Adam),
            "schedule", "augment" and "bf16", as far as it has them, and "lr".
        device: Where training runs. "bf16" asks for bfloat16 where it computes in it, see
            `computes_bf16`.
    """
    make = {"backbone": OPTIMIZERS[config.get("optimizer", "adam")]}
    return dict(
        optimizer=lambda name, params: make.get(name, adam)(params, config["lr"][name]),
        augment=AUGMENTS[config.get("augment", "none")], schedule=config.get("schedule"),
        bf16=config.get("bf16", False) and computes_bf16(device),
    )  # fmt: skip


def computes_bf16(device: str | torch.device) -> bool:
    """Whether `device` has instructions for bfloat16.

    A processor without them emulates it: a step of the narrow ResNet-18 took 13 times as long as
    in float32 on one with AVX2 alone.
    """
    if pick_device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # of torch.cpu, if it is new
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def make_net(
    splits: gfo.data.Splits, method: str, seed: int, config: dict[str, Any], likelihood: Any = None
) -> gfo.Attached:
    """A fresh network; the backbone's first weights depend on the seed alone, not on the method."""
    torch.manual_seed(derive(seed, "init"))
    sizes = gfo.models.arguments(config)
    model, sites = gfo.models.build(config["model"], classes=splits.classes, **sizes)
    if config["model"] == "cifar-fast":
        whiten(model, splits.train[0][:2000])
    if config.get("channels_last"):
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # it exists
    sites, made = config.get("sites", sites), gfo.methods.create(method, **config["method"])
    return gfo.attach(model, sites, made, splits.train[0][:2], likelihood=likelihood)
