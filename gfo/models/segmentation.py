"""A small U-Net: a class for each pixel, a channel-wise mask behind each block."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from gfo.core.checks import check_counts
from gfo.core.registry import MODELS


class DoubleConv(nn.Sequential):
    """3×3 convolution, BatchNorm and ReLU, twice; the size of the image stays."""

    def __init__(self, inputs: int, outputs: int):
        layers: dict[str, nn.Module] = {}
        for i, width in enumerate((inputs, outputs), 1):
            layers[f"conv{i}"] = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
            layers |= {f"bn{i}": nn.BatchNorm2d(outputs), f"relu{i}": nn.ReLU()}
        super().__init__(OrderedDict(layers))


class UNet(nn.Module):
    """Logits (B, classes, H, W) for images (B, channels, H, W) of any size from 2^depth on.

    On the way up an image is enlarged to the size of its skip connection. Its forward raises
    ValueError for a smaller image.
    """

    def __init__(self, channels: int, classes: int, width: int, depth: int):
        super().__init__()
        widths = [width * 2**level for level in range(depth)]
        self.least = 2**depth
        pairs = zip([channels, *widths], widths, strict=False)
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in pairs)
        self.middle = DoubleConv(widths[-1], 2 * widths[-1])
        self.up = nn.ModuleList(DoubleConv(3 * w, w) for w in reversed(widths))  # skip w, below 2w
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Conv2d(width, classes, 1)
        # Several modules read a block; but a mask on its channels is one on the rows of its last
        # convolution, up to the scale that BatchNorm gives each row: see `resnet18`.
        self.consumers = {site: f"{site}.conv2" for site in self.sites()}

    def sites(self) -> list[str]:
        """The names of the blocks, as they run."""
        return [name for name, part in self.named_modules() if isinstance(part, DoubleConv)]

    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[-2:]) < self.least:
            cause = f"images are {tuple(image.shape[-2:])}, this network halves them down from"
            cure = "enlarge them, or build it with a smaller depth"
            raise ValueError(f"{cause} {self.least} pixels or more: {cure}")
        h, skips = image, []
        for block in self.down:
            skips.append(block(h))
            h = self.pool(skips[-1])
        h = self.middle(h)
        for block in self.up:
            skip = skips.pop()
            h = block(torch.cat([skip, nn.functional.interpolate(h, size=skip.shape[-2:])], 1))
        return self.out(h)


@MODELS.register("unet")
def unet(
    channels: int = 1, classes: int = 2, width: int = 16, depth: int = 2
) -> tuple[UNet, list[str]]:
    """A U-Net and its sites (Ronneberger et al., 2015).

    A site is the output of a block of two convolutions, on its way to the next block and over the
    skip connection alike; a mask drops whole channels. Unlike the original it has BatchNorm, pads
    its convolutions, and enlarges by nearest neighbours.

    Args:
        channels: Of the images.
        classes: K, how many there are per pixel.
        width: Channels of the first block, doubled in each deeper one.
        depth: How often the image is halved.

    Returns:
        The model and the names of its sites: down.0, …, middle, up.0, …

    Raises:
        ValueError: For a number below 1.
    """
    check_counts(channels=channels, classes=classes, width=width, depth=depth)
    model = UNet(channels, classes, width, depth)
    return model, model.sites()
