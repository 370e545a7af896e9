"""Batches: one tensor, or a tuple, list or mapping of tensors of equal leading size; tokens."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LABELS = ("y", "label", "labels", "target", "targets")  # where a batch that is a mapping has y


def leaves(x: Any) -> list[Tensor]:
    """The tensors in `x`, in order; of a mapping in the order of its keys, not as inserted."""
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, Mapping):
        x = [x[key] for key in sorted(x)]
    if isinstance(x, tuple | list):
        return [leaf for part in x for leaf in leaves(part)]
    return []


def tree_map(f: Callable[..., Any], x: Any, *more: Any, kind: type = Tensor) -> Any:
    """`x` with `f` applied to each tensor, and to its like in `more`, any mapping as a dict;
    anything else as it is."""
    if isinstance(x, kind):
        return f(x, *more)
    if isinstance(x, Mapping):
        return {k: tree_map(f, x[k], *(other[k] for other in more), kind=kind) for k in x}
    if isinstance(x, tuple | list):
        parts = [tree_map(f, *each, kind=kind) for each in zip(x, *more, strict=True)]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)  # a NamedTuple
    return x


def from_mapping(batch: Mapping) -> Any:
    """(x, y) of a mapping: y is its entry of `LABELS`, x the rest, bare if that is one entry."""
    label = next((name for name in LABELS if name in batch), None)
    if label is None:
        return batch
    x = {name: batch[name] for name in batch if name != label}
    return next(iter(x.values())) if len(x) == 1 else x, batch[label]


def as_tensors(x: Any) -> Any:
    """`x` with a copy of each NumPy array as a tensor.

    Raises:
        ValueError: For an array of anything but numbers.
    """

    def convert(array: np.ndarray) -> Tensor:
        try:
            return torch.from_numpy(np.array(array, order="C"))
        except TypeError:
            raise ValueError(f"an array holds {array.dtype}: pass numbers") from None

    return tree_map(convert, x, kind=np.ndarray)


def kinds(x: Any) -> tuple:
    """Shape without the batch axis and number format of each tensor in `x`, keys of a mapping."""
    keys = sorted(x) if isinstance(x, Mapping) else []
    return *[(tuple(t.shape[1:]), t.dtype) for t in leaves(x)], *keys


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
    """`model(x)` of a copy, in which the model may work in place, with a tuple or list spread over
    positions and a mapping over keywords."""
    x = tree_map(torch.clone, x)
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer, the CPU for one that has neither."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


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
        torch.empty(0, device="cpu" if asked.type == "cuda" else asked).cpu()  # cuda: see below
    except RuntimeError:
        raise ValueError(f"device {device!r} is none: auto, cpu, cuda or cuda:1, say") from None
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} asked for, but torch sees no CUDA: use device='auto'")
    return asked


class Tokens(nn.Module):
    """A mask site of a model that pads: `site(h, real)` gives h, (B, T, C), back.

    `real` is (B, T), True where a token is there. A mask of padding is 1 and its log-probability 0
    under every policy, and no mean over tokens has padding in it. Where log Z or h_0 read x itself,
    padding of x are the tokens that are all zero.
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
    """The float tensors of x, flattened and joined, without a gradient.

    Args:
        x: A batch.
        tokens: Whether the network has token sites; then a sequence (B, T, D) is its mean over the
            tokens that are not all zero (and so is a signal (B, channels, T): over its channels).

    Returns:
        (B, n), or None where x has no float tensor.
    """
    parts = [
        token_mean(t, (t != 0).any(-1)) if tokens and t.dim() == 3 else t.reshape(len(t), -1)
        for t in map(Tensor.detach, leaves(x))
        if t.is_floating_point()
    ]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0] if parts else None
