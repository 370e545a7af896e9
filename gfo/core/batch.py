"""Batches: one tensor, or a tuple, list or dict of tensors of equal leading size; their tokens."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def leaves(x: Any) -> list[Tensor]:
    """The tensors in `x`, in order; of a dict in the order of its keys, not of their insertion."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        x = [x[key] for key in sorted(x)]
    if isinstance(x, tuple | list):
        return [leaf for part in x for leaf in leaves(part)]
    return []


def tree_map(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """`x` with `f` applied to each tensor; anything else is kept as it is."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, dict):
        return {key: tree_map(f, part) for key, part in x.items()}
    if isinstance(x, tuple | list):
        parts = [tree_map(f, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)  # a NamedTuple
    return x


def rows(x: Any) -> int:
    """The batch size B of `x`."""
    return leaves(x)[0].shape[0]


def row_slice(x: Any, start: int, count: int) -> Any:
    """Rows start … start + count of a batch."""
    return tree_map(lambda t: t[start : start + count], x)


def to_device(x: Any, device: torch.device | str) -> Any:
    """`x` with every tensor on `device`."""
    return tree_map(lambda t: t.to(device), x)


def repeat_rows(x: Any, times: int) -> Any:
    """`times` copies of the batch, one after the other: row s·B + b is row b."""
    # unlike `repeat`, this keeps channels-last
    return tree_map(lambda t: torch.cat([t] * times), x)  # (B, ...) -> (S·B, ...)


def call(model: Callable, x: Any) -> Any:
    """`model(x)`, with a tuple or list spread over positions and a dict over keywords."""
    if isinstance(x, dict):
        return model(**x)
    if isinstance(x, tuple | list):
        return model(*x)
    return model(x)


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer, the CPU for one that has neither."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):  # no further than one
        return tensor.device
    return torch.device("cpu")


def pick_device(device: str | torch.device) -> torch.device:
    """The torch device that `device` names.

    Args:
        device: "auto" for the GPU if there is one, else a name such as "cpu" or "cuda:1".

    Raises:
        ValueError: For a name that is none, and for a GPU that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is none: auto, cpu, cuda or cuda:1, say") from None
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} asked for, but torch sees no CUDA: use device='auto'")
    return asked


class Tokens(nn.Module):
    """A mask site of a model that pads: `site(h, real)` gives h, (B, T, C), back.

    `real` is (B, T), True where a token is there. A mask of padding is 1 and its log-probability 0
    under every policy, and no mean over tokens has padding in it.
    """

    # positions only: a hook does not see keywords
    def forward(self, h: Tensor, real: Tensor | None = None, /) -> Tensor:
        return h


def token_mean(h: Tensor, real: Tensor | None) -> Tensor:
    """The mean over real tokens, all where `real` is None: (B, T, C) -> (B, C)."""
    if real is None:
        return h.mean(1)
    weight = real.unsqueeze(-1).to(h.dtype)  # (B, T) -> (B, T, 1)
    return (h * weight).sum(1) / weight.sum(1).clamp_min(1)


def features(x: Any, tokens: bool) -> Tensor | None:
    """The float tensors of x, flattened and joined.

    Args:
        x: A batch.
        tokens: Whether the network has token sites; then a sequence (B, T, D) is its mean over the
            tokens that are not all zero.

    Returns:
        (B, n), or None where x has no float tensor.
    """
    parts = []
    for leaf in leaves(x):
        if leaf.is_floating_point():
            sequence = tokens and leaf.dim() == 3
            parts.append(token_mean(leaf, (leaf != 0).any(-1)) if sequence else leaf.flatten(1))
    return torch.cat(parts, 1) if parts else None
