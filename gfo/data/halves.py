"""The lower half of an image from its upper half: one input, many right outputs."""

from collections.abc import Sequence

import torch

from gfo.core.registry import DATASETS
from gfo.data.images import MNIST_SIZES, digits, mnist
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
def mnist_halves(root: Root = None, seed: int = 0, *, sizes: Sequence[int] = MNIST_SIZES) -> Splits:
    """Halves of MNIST's digits, 28×28, at half the maximum: 392 bits from 392."""
    return halves(mnist(root, seed, sizes=sizes))
