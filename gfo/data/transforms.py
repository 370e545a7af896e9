"""Shifts of test images, applied to raw images in [0, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(x: Tensor, degrees: Tensor | float) -> Tensor:
    """Rotate images (n, C, H, W) counter-clockwise about their centre; bilinear, black outside.

    degrees: one angle, or one an image (n,). Angle 0 gives the images back exactly.
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
    still = (angle == 0).to(x.device)[:, None, None, None]
    return torch.where(still, x, turned)
