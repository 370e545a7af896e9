"""Gaussian noise, snow and frost at five severities, batched and seeded.

The constants, in `corruptions.toml`, are those with which CIFAR-10-C was made (Hendrycks &
Dietterich, 2019); they suit 32×32 images, ImageNet-C's do not. Two things differ from the published
arrays: the snow is blurred by a half-Gaussian line kernel of our own instead of ImageMagick's, and
the frost is cut from the five textures of the package torch-uncertainty-assets. The arrays
themselves: `gfo.data.cifar_c`.
"""

import functools
import math
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.core.files import declared
from gfo.core.noise import generator
from gfo.core.registry import Registry

CORRUPTIONS = Registry("corruption")
SEVERITIES = (1, 2, 3, 4, 5)
CHUNK = 1000  # images at a time

CONSTANTS = declared(__file__)
NOISE, SNOW, FROST = (CONSTANTS[name] for name in ("gaussian_noise", "snow", "frost"))


def corrupt(x: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Corrupt raw images, at one of five severities.

    The same seed gives image i the same random numbers at every severity.

    Args:
        x: Raw images (n, C, H, W) in [0, 1], C = 1 or 3; under frost of at most 63 × 97 pixels.
        name: "gaussian_noise", "snow" or "frost".
        severity: 1 to 5.
        seed: Of the noise, flakes and crops.

    Returns:
        Images of the same shape and range.

    Raises:
        ValueError: For an unknown name, a severity outside 1–5, or images of another shape or
            range, or larger than a texture of frost.
        FileNotFoundError: Where frost's textures are not installed.
    """
    change = corruption(name, severity)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(x.shape)}, need (n, 1 or 3, height, width)")
    if not len(x) or float(x.min()) < 0 or float(x.max()) > 1:
        raise ValueError("need images of raw pixels in [0, 1]: corrupt first, then normalise")
    gens = (generator(seed, name, index, device=x.device) for index in range(len(x)))
    return torch.cat([change(part, severity, next(gens)) for part in x.split(CHUNK)])


def corruption(name: str, severity: int) -> Callable[..., Tensor]:
    """The change `name`; ValueError where there is none, or no such severity."""
    change = CORRUPTIONS[name]
    if severity not in SEVERITIES:
        raise ValueError(f"severity is {severity}, needs to be one of 1, 2, 3, 4, 5")
    return change


@CORRUPTIONS.register("gaussian_noise")
def gaussian_noise(x: Tensor, severity: int, gen: torch.Generator) -> Tensor:
    """x + σ · N(0, 1), clipped."""
    noise = torch.randn(x.shape, generator=gen, device=x.device)
    return (x + NOISE[severity - 1] * noise).clamp(0, 1)


@CORRUPTIONS.register("snow")
def snow(x: Tensor, severity: int, gen: torch.Generator) -> Tensor:
    """Bright flakes, blurred along a line and laid over a whitened image.

    They are laid once as they fall and once turned by 180°.
    """
    mean, std, zoom, threshold, radius, sigma, share = SNOW[severity - 1]
    n, channels, height, width = x.shape
    flakes = mean + std * torch.randn(n, 1, height, width, generator=gen, device=x.device)
    flakes = zoomed(flakes, zoom)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angle = -135 + 90 * torch.rand(n, generator=gen, device=x.device)  # degrees
    flakes = streaked(flakes, radius, sigma, angle)
    grey = luminance(x) if channels == 3 else x
    whitened = share * x + (1 - share) * torch.maximum(x, 1.5 * grey + 0.5)
    return (whitened + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


@CORRUPTIONS.register("frost")
def frost(x: Tensor, severity: int, gen: torch.Generator) -> Tensor:
    """Each image mixed with a crop of a frost texture, clipped; grey where x is grey."""
    image, texture = FROST[severity - 1]
    n, channels, height, width = x.shape
    crops = torch.stack([crop(textures(), height, width, gen) for _ in range(n)])  # (n, 3, H, W)
    crops = crops if channels == 3 else luminance(crops)
    return (image * x + texture * crops).clamp(0, 1)


def luminance(x: Tensor) -> Tensor:
    """Grey values (n, 1, H, W) of colours (n, 3, H, W), by the weights of ITU-R BT.601."""
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def zoomed(layer: Tensor, zoom: float) -> Tensor:
    """The middle of (n, 1, H, W) enlarged to the whole, bilinear."""
    height, width = layer.shape[2:]
    rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = layer[..., top : top + rows, left : left + columns]
    return F.interpolate(middle, size=(height, width), mode="bilinear", align_corners=True)


def streaked(layer: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """(n, 1, H, W) blurred along a line from each pixel.

    Weights are exp(−i²/2σ²) at distances i = 0 … 2·radius, normalised; edges repeat.

    Args:
        layer: (n, 1, H, W).
        radius: Half the length of the line, in pixels.
        sigma: σ, in pixels.
        degrees: Of the line, one angle per image, (n,).
    """
    height, width = layer.shape[2:]
    steps = torch.arange(2 * radius + 1, device=layer.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    angle = degrees * (math.pi / 180)
    still = torch.eye(2, 3, device=layer.device).expand(len(layer), 2, 3)
    grid = F.affine_grid(still, list(layer.shape), align_corners=False)
    # a pixel is 2/W of the grid's range wide
    pixel = torch.stack([angle.cos() * 2 / width, angle.sin() * 2 / height], 1)  # (n, 2)
    total = torch.zeros_like(layer)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        moved = grid + step * pixel[:, None, None]
        total += weight * F.grid_sample(layer, moved, padding_mode="border", align_corners=False)
    return total


def crop(choices: list[Tensor], height: int, width: int, gen: torch.Generator) -> Tensor:
    """A random crop (C, height, width) of one of several images, on the device of `gen`."""

    def draw(high: int) -> int:
        if high < 1:
            raise ValueError(f"frost's textures have 63 × 97 pixels, no {height} × {width}")
        return int(torch.randint(high, (), generator=gen, device=gen.device))

    chosen = choices[draw(len(choices))]
    top, left = draw(chosen.shape[1] - height + 1), draw(chosen.shape[2] - width + 1)
    return chosen[:, top : top + height, left : left + width].to(gen.device)


@functools.cache
def textures() -> list[Tensor]:
    """The frost textures at a fifth of their size, (3, H, W) in [0, 1]."""
    from PIL import Image  # comes with torchvision and matplotlib

    try:
        folder = resources.files("torch_uncertainty_assets.frost")
    except ModuleNotFoundError:
        raise FileNotFoundError("frost's textures: pip install torch-uncertainty-assets") from None
    found = []
    for name in sorted(f.name for f in folder.iterdir() if f.name.endswith(".jpg")):
        with (folder / name).open("rb") as file:
            picture = Image.open(file).convert("RGB")
        size = [round(CONSTANTS["texture_scale"] * side) for side in picture.size]
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
        found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255)  # -> (3, H, W)
    return found
