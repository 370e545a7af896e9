"""What may not be a site, and what had better not be one."""

import warnings
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from gfo.core.batch import leaves, rows


def check_example(example: Any) -> None:
    """Raise ValueError unless it holds tensors of real numbers with at least one row."""
    if not leaves(example):
        raise ValueError(f"example is a {type(example).__name__} without a tensor: pass tensors")
    if rows(example) < 1:
        raise ValueError("example is empty: pass a batch of at least one input")
    if any(t.is_complex() for t in leaves(example)):
        raise ValueError("example is complex: pass torch.view_as_real(example), say")


def check_site(name: str, outputs: list) -> None:
    """Raise ValueError unless a site's calls in one pass gave exactly one tensor."""
    if len(outputs) > 1:
        wrong = f"is called {len(outputs)} times in one pass: give each call a module"
    elif not outputs:
        wrong = "is never called on the example: choose a module that runs"
    elif not isinstance(outputs[0], Tensor):
        kind = type(outputs[0]).__name__
        wrong = f"returns a {kind}, no tensor: choose the dropout behind it, say"
    elif outputs[0].is_nested:
        wrong = "returns a nested tensor: set enable_nested_tensor=False in its encoder"
    elif not outputs[0].is_floating_point():
        wrong = f"returns {outputs[0].dtype}, masks multiply floats: choose a module behind it"
    else:
        return
    raise ValueError(f"site {name!r} {wrong}")


def check_together(
    outputs: dict[str, Tensor], logits: Tensor, dropped: list[str], maker: str | None
) -> None:
    """Raise ValueError where two sites return one tensor, and warn of what weakens masks.

    Args:
        outputs: Of each site.
        logits: A site that returns them is warned of, and where they are probabilities.
        dropped: Sites at which the model's own dropout acts too while it trains.
        maker: Name of the function that made the logits, None where the likelihood reads none.
    """
    for (name, h), (other, same) in combinations(outputs.items(), 2):
        # a view too, as of a Flatten
        if h.data_ptr() == same.data_ptr() and h.numel() == same.numel():
            raise ValueError(f"sites {name!r} and {other!r} return the same tensor: name one")
    for name in (name for name, h in outputs.items() if are_logits(h, logits)):
        cause = f"site {name!r} is the output layer: its masks set logits to 0"
        warnings.warn(f"{cause}; choose a module before it", stacklevel=4)
    sums_to_1 = (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3
    maker = "softmax" if maker is not None and sums_to_1 and logits.shape[1] > 1 else maker
    if maker in ("softmax", "sigmoid"):
        warnings.warn(f"the model ends in a {maker}: give the logits before it", stacklevel=4)
    if dropped:
        cause = "dropout of the model's own, p > 0, acts in training beside the masks of site(s)"
        warnings.warn(f"{cause} {', '.join(dropped)}: set its p to 0", stacklevel=4)


def are_logits(h: Tensor, logits: Tensor) -> bool:
    """Whether h holds the logits, be it in another shape or before their log-softmax."""
    if h.numel() != logits.numel():
        return False
    h = h.reshape(logits.shape).to(logits)
    return any(torch.allclose(one, logits, equal_nan=True) for one in (h, h.log_softmax(1)))
