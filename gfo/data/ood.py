"""Images from outside a data set, for out-of-distribution detection."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.core.noise import generator
from gfo.core.registry import Registry
from gfo.data.corruptions import crop
from gfo.data.images import cifar_part, digits_part, svhn_part
from gfo.data.splits import Root, Splits, unit

OUTSIDE = Registry("out-of-distribution set")
SIDE = 32


def outside(name: str, splits: Splits, n: int, root: Root = None, seed: int = 0) -> Tensor:
    """Images of another source, as a network of `splits` reads them.

    They are normalised by the training part of `splits`, not by their own.

    Args:
        name: "svhn", "cifar10", "cifar100" (their test sets), "digits", "photos" (crops of the two
            photographs in scikit-learn), "noise" (uniform pixels).
        splits: What the network was trained on.
        n: How many, or all there are if fewer.
        root: Where the files lie, see `gfo.data.load`.
        seed: Draws which.

    Raises:
        ValueError: Where `name` is unknown or the data set itself, or has images of another shape.
        FileNotFoundError: Where its files are missing.
    """
    if name == splits.name:
        raise ValueError(f"{name} is what the network was trained on: nothing outside about it")
    return splits.normalised(unit(OUTSIDE[name](root, n, generator(seed, "outside", name))))


def _some(x: Tensor, n: int, gen: torch.Generator) -> Tensor:
    return x[torch.randperm(len(x), generator=gen)[:n]]


OUTSIDE["svhn"] = lambda root, n, gen: _some(svhn_part(root, False)[0], n, gen)
OUTSIDE["cifar10"] = lambda root, n, gen: _some(cifar_part("cifar10", root, False)[0], n, gen)
OUTSIDE["cifar100"] = lambda root, n, gen: _some(cifar_part("cifar100", root, False)[0], n, gen)
OUTSIDE["digits"] = lambda root, n, gen: _some(digits_part(SIDE, 3)[0], n, gen)
OUTSIDE["noise"] = lambda root, n, gen: torch.rand(n, 3, SIDE, SIDE, generator=gen)


@OUTSIDE.register("photos")
def _photos(root, n, gen):
    """Two photographs, a temple and a flower, at a quarter of their size."""
    from sklearn.datasets import load_sample_images

    photos = [
        F.avg_pool2d(torch.from_numpy(image.copy()).permute(2, 0, 1) / 255, 4)  # -> (3, H/4, W/4)
        for image in load_sample_images().images
    ]
    return torch.stack([crop(photos, SIDE, SIDE, gen) for _ in range(n)])
