"""One input, many right outputs: halves of images, and an inverse problem."""

import math
from collections.abc import Sequence

import torch

from gfo.core.noise import generator
from gfo.core.registry import DATASETS
from gfo.data.images import digits, from_torchvision
from gfo.data.splits import Part, Root, Splits

# Pixels of at least half the maximum are 1. Levels lie 1/255 apart or more; what is within a
# thousandth of the threshold is on it but for the rounding of `Splits.raw`.
THRESHOLD = 0.5 - 1e-3


def halves(whole: Splits) -> Splits:
    """Each image cut in two: x (n, D) its upper half, y (n, D) its lower one, bits as floats.

    The parts hold the images that they hold in `whole`; `classes` is D.
    """

    def cut(part: Part) -> Part:
        upper, lower = (whole.raw(part[0]) > THRESHOLD).float().flatten(1).chunk(2, 1)
        return upper.contiguous(), lower.contiguous()

    parts = [cut(part) for part in (whole.train, whole.valid, whole.tune, whole.test)]
    name, mean, std = f"{whole.name}-halves", torch.zeros(1, 1), torch.ones(1, 1)  # bits stay
    return Splits(name, *parts, mean=mean, std=std, classes=parts[0][1].shape[1])


@DATASETS.register("digits-halves")
def digits_halves(root: Root = None, seed: int = 0) -> Splits:
    """Halves of scikit-learn's digits, 8×8, at half the maximum: 32 bits from 32."""
    return halves(digits(root, seed, size=8))


@DATASETS.register("mnist-halves")
def mnist_halves(root: Root = None, seed: int = 0, *, sizes: Sequence[int] | None = None) -> Splits:
    """Halves of MNIST's digits, 28×28, at half the maximum: 392 bits from 392."""
    return halves(from_torchvision("mnist", root, seed, sizes=sizes))


@DATASETS.register("inverse")
def inverse(root: Root = None, seed: int = 0) -> Splits:
    """Bishop's inverse problem (1994): y from x = y + 0.3 sin 2πy + noise, y uniform on [0, 1].

    Around x = 0.5 three values of y are right. The noise is normal with standard deviation 0.05.
    2,000 pairs to train, 500 to validate, 500 to tune, 1,000 to test; x and y (n, 1), as they are.
    `classes` is 2, a mean and the log of a standard deviation.

    Args:
        root: Not needed.
        seed: Of the pairs.
    """

    def draw(n: int, part: int) -> Part:
        gen = generator(seed, "inverse", part)
        y = torch.rand(n, 1, generator=gen)
        return y + 0.3 * torch.sin(2 * math.pi * y) + 0.05 * torch.randn(n, 1, generator=gen), y

    parts = [draw(n, part) for part, n in enumerate((2000, 500, 500, 1000), 1)]
    return Splits("inverse", *parts, mean=torch.zeros(1, 1), std=torch.ones(1, 1), classes=2)
