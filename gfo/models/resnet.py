"""ResNet-18 for 32×32 images, a channel-wise mask in each block."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from gfo.core.registry import MODELS

ORDERS = ("conv-bn", "bn-conv")


@MODELS.register("resnet18")
def resnet18(
    classes: int = 10, *, width: int = 64, blocks: Sequence[int] = (2, 2, 2, 2),
    order: str = "conv-bn", channels: int = 3,
) -> tuple[nn.Sequential, list[str]]:  # fmt: skip
    """A residual network on images (B, channels, H, W) with logits (B, classes).

    The blocks and parameter names are torchvision's, the stem is that of He et al. (2016, section
    4.2) for CIFAR: one 3×3 convolution, no pooling. A site is the end of a block's residual branch,
    so that a mask acts on whole channels before the shortcut is added.

    `model.consumers` names, for concrete dropout, the convolution whose weights a site's mask
    multiplies. Nothing reads a masked branch alone, since the shortcut is added to it; but a mask
    on the branch's output channels is a mask on the rows of its last convolution, up to the scale
    that BatchNorm gives each row.

    Args:
        classes: K, how many there are.
        width: Channels of the first stage, doubled in each later one; 64 is ResNet-18.
        blocks: How many in each stage; every stage but the first halves the image.
        order: "conv-bn", or "bn-conv" for the pre-activation block of the paper's Figure 5.
        channels: Of the images.

    Returns:
        The model and the names of its sites.

    Raises:
        ValueError: For an unknown order, and a width or number of blocks below 1.
    """
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}, needs to be one of {ORDERS}")
    if width < 1 or not blocks or min(blocks) < 1:
        raise ValueError(f"width {width} and blocks {tuple(blocks)} need to be at least 1")
    layers: list[tuple[str, nn.Module]] = [("conv1", conv(channels, width))]
    layers += normalised(width) if order == "conv-bn" else []
    sites, inputs = [], width
    for stage, count in enumerate(blocks):
        outputs, parts = width * 2**stage, []
        for index in range(count):
            parts.append(make_block(order, inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs
            sites.append(f"layer{stage + 1}.{index}.{'bn2' if order == 'conv-bn' else 'conv2'}")
        layers.append((f"layer{stage + 1}", nn.Sequential(*parts)))
    layers += normalised(inputs) if order == "bn-conv" else []
    layers += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    layers.append(("fc", nn.Linear(inputs, classes)))
    model = nn.Sequential(OrderedDict(layers))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    consumers = {site: f"{site.rpartition('.')[0]}.conv2" for site in sites}
    model.consumers = consumers  # pyright: ignore[reportArgumentType]  # no module, no tensor
    return model, sites


class Subsampled(nn.Conv2d):
    """A 1×1 convolution with a stride, as a slice and one without.

    For channels-last images of fewer channels than a vector register holds numbers (8 under AVX2,
    16 under AVX-512) oneDNN's kernel writes past its buffer in the backward pass and corrupts the
    heap (github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return nn.functional.conv2d(x[:, :, ::down, ::right], self.weight)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    kind = Subsampled if kernel == 1 and stride > 1 and inputs < 16 else nn.Conv2d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def normalised(channels: int) -> list[tuple[str, nn.Module]]:
    return [("bn1", nn.BatchNorm2d(channels)), ("relu", nn.ReLU())]


def make_block(order: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock  # takes two seconds: only where it is needed

    fits = stride == 1 and inputs == outputs
    if order == "bn-conv":
        shortcut = nn.Identity() if fits else conv(inputs, outputs, 1, stride)
        return PreActivation(inputs, outputs, stride, shortcut)
    shortcut = [conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)]
    return BasicBlock(inputs, outputs, stride, None if fits else nn.Sequential(*shortcut))


class PreActivation(nn.Module):
    """BatchNorm–ReLU–Conv, twice, then the shortcut added.

    He et al., 2016b, full pre-activation. The mask acts behind the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.relu, self.shortcut = nn.ReLU(), shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.relu(self.bn1(x)))
        return self.conv2(self.relu(self.bn2(h))) + self.shortcut(x)
