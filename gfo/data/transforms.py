"""Batched changes of images and labels: rotation, crops and flips, label noise."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.core.noise import generator
from gfo.data.splits import Splits


def rotate(x: Tensor, degrees: Tensor | float) -> Tensor:
    """Rotate raw images counter-clockwise about their centre; bilinear, black outside.

    Args:
        x: (n, C, H, W).
        degrees: One angle, or one per image (n,). Angle 0 gives the images back exactly.
    """
    angle = torch.as_tensor(degrees, dtype=torch.float64).expand(len(x)) * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    zero = torch.zeros_like(cos)
    height, width = x.shape[-2:]
    theta = torch.stack(  # maps output to input positions, in units of half the image
        [cos, -sin * height / width, zero, sin * width / height, cos, zero], 1
    ).unflatten(1, (2, 3))  # (n, 6) -> (n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False).to(x)
    turned = F.grid_sample(x, grid, align_corners=False)
    return torch.where((angle == 0).to(x.device)[:, None, None, None], x, turned)


def crop_flip(x: Tensor, gen: torch.Generator, *, pad: int = 4) -> Tensor:
    """Each image moved by a few pixels, and mirrored half the time: CIFAR's usual augmentation.

    What moves in is 0, so the mean colour where x is normalised.

    Args:
        x: (n, C, H, W), on the device of `gen`.
        gen: Draws the moves.
        pad: The most pixels that an image moves either way.
    """
    n, _, height, width = x.shape

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=gen, device=gen.device)

    rows = draw(2 * pad + 1) + torch.arange(height, device=gen.device)  # (n, H)
    columns = draw(2 * pad + 1) + torch.arange(width, device=gen.device)  # (n, W)
    columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    padded, image = F.pad(x, [pad] * 4), torch.arange(n, device=gen.device)[:, None, None]
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]]  # (n, H, W, C)
    return moved.permute(0, 3, 1, 2)  # -> (n, C, H, W)


def random_labels(y: Tensor, classes: int, share: float, gen: torch.Generator) -> Tensor:
    """Labels of which a share, picked at random, is drawn anew.

    They are uniform over all classes, so that one in `classes` of them is right by luck.

    Args:
        y: (n,).
        classes: K, how many there are.
        share: Of labels drawn anew; round(share · n) of them.
        gen: Draws which, and the labels.

    Raises:
        ValueError: For a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, needs to lie in [0, 1]")
    picked = torch.randperm(len(y), generator=gen)[: round(share * len(y))]
    noisy = y.clone()
    noisy[picked] = torch.randint(classes, (len(picked),), generator=gen)
    return noisy


def rotated(splits: Splits) -> Tensor:
    """The test images, each turned by its own angle.

    Uniform on 0–360°, the same draw for every method and seed.
    """
    x = splits.test[0]
    angles = 360 * torch.rand(len(x), generator=generator(0, "rotation"))
    return splits.shifted(x, lambda raw: rotate(raw, angles))


def add_noise(raw: Tensor, sigma: float) -> Tensor:
    """Gaussian pixel noise, the same draw for every method and severity, clipped to [0, 1]."""
    return (raw + sigma * torch.randn(raw.shape, generator=generator(0, "pixel noise"))).clamp(0, 1)
