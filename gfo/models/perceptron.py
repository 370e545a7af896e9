"""The paper's multi-layer perceptron: ReLU layers, a mask behind each."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import nn

from gfo.core.registry import MODELS


@MODELS.register("mlp")
def mlp(
    inputs: int = 784, classes: int = 10, hidden: Sequence[int] = (300, 100)
) -> tuple[nn.Sequential, list[str]]:
    """An MLP on flattened inputs (B, ...) with logits (B, classes).

    The default is the paper's network for MNIST, 784-300-100-10 (section 4).

    Args:
        inputs: Numbers per flattened input.
        classes: K, how many there are.
        hidden: Widths of the hidden layers.

    Returns:
        The model and its sites: relu1, relu2, …
    """
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    width = inputs
    for i, outputs in enumerate(hidden, 1):
        layers += [(f"fc{i}", nn.Linear(width, outputs)), (f"relu{i}", nn.ReLU())]
        width = outputs
    layers.append(("out", nn.Linear(width, classes)))
    return nn.Sequential(OrderedDict(layers)), [f"relu{i}" for i in range(1, len(hidden) + 1)]


@MODELS.register("regressor")
def regressor(
    inputs: int = 8, targets: int = 1, hidden: Sequence[int] = (64, 64), *, log_sd: bool = True
) -> tuple[nn.Sequential, list[str]]:
    """An MLP for real y (B, D): outputs (B, 2D), D means, then the logs of D standard deviations.

    The logs start near 0, standard deviations near 1: standardise y.

    Args:
        inputs: Numbers per flattened input.
        targets: D, how many numbers are predicted.
        hidden: Widths of the hidden layers.
        log_sd: Without it outputs are the means alone, (B, D), for one learned standard deviation.

    Returns:
        The model and its sites: relu1, relu2, …
    """
    return mlp(inputs, targets * (2 if log_sd else 1), hidden)


# Three layers for a yes or no, masks behind both hidden ones (A.1.5, which says no widths).
MODELS["icu-mlp"] = partial(mlp, classes=2, hidden=(64, 64))
