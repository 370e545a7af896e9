"""Frozen networks with so few mask bits that every mask can be listed."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gfo.core.attach import attach
from gfo.core.likelihood import Likelihood
from gfo.core.noise import derive, generator
from gfo.methods import RandomDropout
from gfo.models.perceptron import mlp
from gfo.train.fit import fit


class Toy(NamedTuple):
    """A frozen, trained backbone with few mask bits, and the points to look at.

    Attributes:
        model: The backbone, in eval mode.
        sites: Where its masks go.
        x: (points, 4).
        y: (points,), or what its likelihood reads.
        likelihood: None for class labels.
    """

    model: torch.nn.Module
    sites: list[str]
    x: Tensor
    y: Tensor
    likelihood: Likelihood | None = None


def iris() -> tuple[Tensor, Tensor]:
    """Fisher's 150 flowers, bundled with scikit-learn: standardised x (150, 4), y (150,) in 0…2."""
    from sklearn.datasets import load_iris  # here: a second to load

    x, y = load_iris(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(y, dtype=torch.long)


@torch.random.fork_rng()  # the caller's random state stays his
def toy(hidden: Sequence[int] = (5, 5), *, points: int = 40, seed: int = 0) -> Toy:
    """An MLP on iris, trained with dropout 0.5 behind every hidden layer, then frozen.

    Args:
        hidden: Widths of the hidden layers.
        points: How many of its training examples to look at.
        seed: Of the training and the choice of points.

    Raises:
        ValueError: For no point, and for more than there are.
    """
    torch.manual_seed(derive(seed, "toy"))
    model, sites = mlp(inputs=4, classes=3, hidden=hidden)
    x, y = iris()
    if not 0 < points <= len(y):
        raise ValueError(f"points is {points}, iris has 1 to {len(y)} of them")
    with attach(model, sites, RandomDropout(keep=0.5), x[:2]) as net:
        rate = {"backbone": 0.01}
        fit(net, (x, y), epochs=200, batch=32, lr=rate, seed=seed, device="cpu", progress=False)
    chosen = torch.randperm(len(y), generator=generator(seed, "points"))[:points]
    return Toy(model.requires_grad_(False).eval(), sites, x[chosen], y[chosen])
