"""Input checks of the public functions: one line that names the cause and the cure."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import leaves, rows
from gfo.core.ensemble import Ensemble


def check_net(net: Any) -> None:
    """Raise ValueError unless `net` comes from `attach`."""
    if isinstance(net, Ensemble):
        raise ValueError("an Ensemble only predicts: ask a member for this, ensemble.nets[0]")
    if not isinstance(net, Attached):
        raise ValueError(f"need a net from gfo.attach, got a {type(net).__name__}")


def check_x(net: Attached, x: Any) -> None:
    """Raise ValueError unless x looks like the example, is not empty and holds no NaN or inf."""
    parts, shapes = leaves(x), net.spec.shapes
    if len(parts) != len(shapes):
        what = f"{len(parts)} tensors" if parts else f"a {type(x).__name__} and no tensor"
        raise ValueError(f"x has {what}, the example had {len(shapes)}")
    fixed = not any(site.tokens for site in net.sites)
    for part, shape in zip(parts, shapes, strict=True):
        got = tuple(part.shape[1:])
        if part.dim() != len(shape) + 1 or (fixed and got != shape):
            raise ValueError(f"x has shape {tuple(part.shape)}, the example had (B, *{shape})")
        if len(part) == 0:
            raise ValueError("x is an empty batch: pass at least one row")
        if len(part) != len(parts[0]):
            raise ValueError(f"x mixes batches of {len(parts[0])} and {len(part)} rows")
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise ValueError("x contains NaN or inf: clean the input first")


def check_y(net: Attached, x: Any, y: Tensor) -> None:
    """Raise ValueError unless y fits the network's likelihood and x."""
    if not isinstance(y, Tensor):
        raise ValueError(f"y is a {type(y).__name__}, needs a tensor: torch.as_tensor(y)")
    net.likelihood.check(y, rows(x), net.spec.classes)


def check_counts(**counts: int) -> None:
    """Raise ValueError, naming it, for a number of something that is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, needs to be at least 1")


def check_masks(net: Attached, masks: Sequence[Tensor], lead: tuple[int, ...]) -> list[Tensor]:
    """`masks` as float tensors, one per site.

    Args:
        net: The network they are for.
        masks: One per site in execution order, ``(*lead, C_l)`` or
            ``(*lead, T_l, C_l)``, of 0 and 1.
        lead: The leading shape of each.

    Raises:
        ValueError: For another number of masks, another shape, or other values.
    """
    if len(masks) != len(net.sites):
        raise ValueError(f"{len(masks)} masks given, the network has {len(net.sites)} sites")
    for mask, site in zip(masks, net.sites, strict=True):
        want = (*lead, site.width) if site.tokens is None else (*lead, site.tokens, site.width)
        shape = tuple(mask.shape)
        if site.tokens and len(shape) == len(want) and 0 < shape[-2] <= site.tokens:
            shape = (*shape[:-2], site.tokens, shape[-1])  # a batch may have fewer tokens
        if shape != want:
            raise ValueError(f"mask of {site.name!r} has shape {tuple(mask.shape)}, needs {want}")
        if net.method.binary and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"mask of {site.name!r} holds values other than 0 and 1")
    return [mask.float() for mask in masks]
