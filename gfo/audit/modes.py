"""A posterior over masks that has two modes by construction, and what a q holds of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gfo.audit import exact
from gfo.audit.toys import Toy
from gfo.core.gaussian import Gaussian
from gfo.models.perceptron import mlp

STATES = ("neither", "first", "second", "both")  # which sub-networks a mask leaves alive


def two_ways(hidden: Sequence[int] = (6, 6), sd: float = 0.2) -> Toy:
    """Two disjoint sub-networks, each of which says 1, in a network that adds them up.

    The first owns the first half of each layer, the second the other half. A unit is 1 if all units
    before it in its own sub-network are kept, else 0; so a sub-network says 1 if all of its units
    are kept, and 0 if one is missing. The output is the sum, 0, 1 or 2. The three points have one x
    and differ in y: 0 wants both sub-networks broken and 2 both alive, each of which is one mode; 1
    wants one of them alive and the other one broken, whichever: two modes of equal mass.

    Args:
        hidden: Widths of the hidden layers, even; a mask bit per unit.
        sd: Standard deviation of y under a mask.

    Raises:
        ValueError: For a width that cannot be halved.
    """
    if any(width % 2 for width in hidden):
        raise ValueError(f"hidden is {tuple(hidden)}, two sub-networks need even widths")
    model, sites = mlp(inputs=1, classes=2, hidden=(*hidden, 2))  # the last layer has no masks
    first, *gates, last = (layer for layer in model if isinstance(layer, nn.Linear))
    model.requires_grad_(False).eval()
    first.weight.fill_(1.0)
    first.bias.zero_()
    for gate in gates:
        half = gate.in_features // 2
        block = torch.ones(gate.out_features // 2, half)
        gate.weight.copy_(torch.block_diag(block, block))
        gate.bias.fill_(1.0 - half)
    last.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))  # the mean, and the log of sd
    last.bias.copy_(torch.tensor([0.0, math.log(sd)]))
    y = torch.tensor([[0.0], [1.0], [2.0]])
    return Toy(model, sites[:-1], torch.ones(3, 1), y, Gaussian())


def states(hidden: Sequence[int]) -> Tensor:
    """Which of `STATES` each mask of `two_ways` is, (2^M,), in `exact.all_masks` order."""
    halves = [mask.chunk(2, 1) for mask in exact.all_masks(hidden)]
    first, second = (torch.cat(half, 1).all(1).long() for half in zip(*halves, strict=True))
    return first + 2 * second


def shares(log_q: Tensor, hidden: Sequence[int]) -> Tensor:
    """The mass of a q (P, 2^M) on each of `STATES`, (P, 4); at y = 1 the modes are 1 and 2."""
    return log_q.exp() @ nn.functional.one_hot(states(hidden), len(STATES)).to(log_q)
