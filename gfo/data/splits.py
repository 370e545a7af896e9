"""Four parts of a data set, normalised by the training part."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..noise import generator

Part = tuple[Tensor, Tensor]  # x (n, channels, height, width) float, y (n,) long


@dataclass(frozen=True)
class Splits:
    """train and valid for fitting, tune for choosing settings, test for reporting.

    Images are (x − mean) / std with one mean and std a channel, of the training part.
    """

    name: str
    train: Part
    valid: Part
    tune: Part
    test: Part
    mean: Tensor
    std: Tensor
    classes: int

    def shifted(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` applied to x as raw images in [0, 1], then normalised again."""
        raw = (x * self.std + self.mean).clamp(0, 1)
        return (change(raw) - self.mean) / self.std


def split(
    name: str, pool: Part, sizes: tuple[int, int, int], test: Part | None, classes: int, seed: int
) -> Splits:
    """Cut raw images in [0, 1] into train, valid and tune (and test, where none is given, from the
    rest) by a permutation drawn from `seed`, and normalise them."""
    x, y = pool
    order = torch.randperm(len(y), generator=generator(seed, name, "split"))
    cuts = order.split([*sizes, len(y) - sum(sizes)])
    train, valid, tune, rest = ((x[index], y[index]) for index in cuts)
    test = rest if test is None else test
    mean = train[0].mean((0, 2, 3), keepdim=True)  # (n, C, H, W) -> (1, C, 1, 1)
    std = train[0].std((0, 2, 3), keepdim=True)
    parts = [((images - mean) / std, labels) for images, labels in (train, valid, tune, test)]
    return Splits(name, *parts, mean, std, classes)


def data_root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("GFO_DATA") or "data")
