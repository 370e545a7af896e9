"""What may not be a site, and what had better not be one."""

import warnings
from itertools import combinations

import torch
from torch import Tensor


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
    else:
        return
    raise ValueError(f"site {name!r} {wrong}")


def check_together(outputs: dict[str, Tensor], logits: Tensor, dropped: list[str]) -> None:
    """Raise ValueError where two sites return one tensor, and warn of what weakens masks.

    Args:
        outputs: Of each site.
        logits: A site that returns them is warned of, and where they are probabilities.
        dropped: Sites at which the model's own dropout acts too while it trains.
    """
    for (name, h), (other, same) in combinations(outputs.items(), 2):
        # a view too, as of a Flatten
        if h.data_ptr() == same.data_ptr() and h.numel() == same.numel():
            raise ValueError(f"sites {name!r} and {other!r} return the same tensor: name one")
    for name in (name for name, h in outputs.items() if are_logits(h, logits)):
        cause = f"site {name!r} is the output layer: its masks set logits to 0"
        warnings.warn(f"{cause}; choose a module before it", stacklevel=4)
    if logits.shape[1] > 1 and (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 1e-3:
        warnings.warn("the model ends in a softmax: of classes give the logits", stacklevel=4)
    if dropped:
        cause = "dropout of the model's own, p > 0, acts in training beside the masks of site(s)"
        warnings.warn(f"{cause} {', '.join(dropped)}: set its p to 0", stacklevel=4)


def are_logits(h: Tensor, logits: Tensor) -> bool:
    """Whether h holds the logits, be it in another shape or before their log-softmax."""
    if h.numel() != logits.numel():
        return False
    h = h.reshape(logits.shape).to(logits)
    return any(torch.allclose(one, logits, equal_nan=True) for one in (h, h.log_softmax(1)))
