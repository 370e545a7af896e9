"""Images with labels: digits, MNIST, CIFAR, SVHN."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from gfo.core.registry import DATASETS
from gfo.data.splits import DIGESTS, Part, Root, Splits, check_file, data_root, fetch, split


@DATASETS.register("digits")
def digits(root=None, seed: int = 0, *, size: int = 28, channels: int = 1) -> Splits:
    """The digits bundled with scikit-learn, brought to 28×28 (bilinear).

    So the networks for MNIST run on them. 1,000 to train, 200 to validate, 200 to tune, 397 to
    test. size=32, channels=3 gives them the shape of CIFAR, three equal channels.

    Args:
        root: Not needed.
        seed: Of the split.
        size: Height and width.
        channels: How many equal ones.
    """
    return split("digits", digits_part(size, channels), (1000, 200, 200), None, 10, seed)


def digits_part(size: int, channels: int) -> Part:
    """All 1,797 raw images (n, channels, size, size) in [0, 1] and their labels."""
    bunch: Any = load_digits()
    small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]  # (n, 1, 8, 8)
    x = F.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return x.repeat(1, channels, 1, 1), torch.tensor(bunch.target, dtype=torch.long)


MNIST_SIZES = (50_000, 5_000, 5_000)


@DATASETS.register("mnist")
def mnist(root: Root = None, seed: int = 0, *, sizes: Sequence[int] = MNIST_SIZES) -> Splits:
    """MNIST, 28×28: 50,000 to train, 5,000 to validate, 5,000 to tune (by seed), 10,000 to test.

    Args:
        root: Where the files lie, see `gfo.data.load`.
        seed: Of the split.
        sizes: How many of the 60,000 to train, to validate and to tune.
    """
    root = data_root(root)
    pool, test = (_part(root, train) for train in (True, False))
    return split("mnist", pool, sizes, test, 10, seed)


MNIST_SHA256 = DIGESTS["mnist"]


def _part(root: Path, train: bool) -> Part:
    from torchvision.datasets import mnist  # takes two seconds: only where it is needed

    # as made by its constructor it would take a processed/ of old, unchecked, before the files
    files: Any = mnist.MNIST.__new__(mnist.MNIST)
    files.root = str(root)
    fetch("MNIST", root, "MNIST/raw", files.download)
    part = Path(files.raw_folder) / ("train" if train else "t10k")
    paths = [Path(f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        check_file(path, MNIST_SHA256[path.name], f"delete it, {path.name}.gz is unpacked anew")
    images, labels = mnist.read_image_file(str(paths[0])), mnist.read_label_file(str(paths[1]))
    return images[:, None].float() / 255, labels.long()  # (n, 28, 28) -> (n, 1, 28, 28)


FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def cifar(
    name: str, root: Root = None, seed: int = 0, *, sizes: Sequence[int] = (45_000, 2_500, 2_500)
) -> Splits:
    """CIFAR, colour images 32×32, 10,000 to test.

    Args:
        name: "cifar10" or "cifar100".
        root: Where the files lie, see `gfo.data.load`.
        seed: Of the split.
        sizes: How many of the other 50,000 to train, to validate and to tune.
    """
    pool, test = (cifar_part(name, root, train) for train in (True, False))
    return split(name, pool, sizes, test, 10 if name == "cifar10" else 100, seed)


def cifar_part(name: str, root: Root, train: bool) -> Part:
    """The 50,000 or the 10,000 raw images (n, 3, 32, 32), bytes, and labels, in their order."""
    from torchvision import datasets  # takes two seconds: only where it is needed

    root, kind = data_root(root), getattr(datasets, name.upper())
    read = partial(kind, str(root), train=train, download=True)
    data = fetch(kind.__name__, root, FOLDERS[name], read)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (n, 32, 32, 3) -> (n, 3, 32, 32)
    return x.contiguous(), torch.tensor(data.targets, dtype=torch.long)


DATASETS["cifar10"] = partial(cifar, "cifar10")
DATASETS["cifar100"] = partial(cifar, "cifar100")


@DATASETS.register("svhn")
def svhn(
    root: Root = None, seed: int = 0, *, sizes: Sequence[int] = (65_000, 4_000, 4_000)
) -> Splits:
    """SVHN, colour images 32×32 of house numbers, 26,032 to test.

    Args:
        root: Where the files lie, see `gfo.data.load`.
        seed: Of the split.
        sizes: How many of the other 73,257 to train, to validate and to tune.
    """
    pool, test = (svhn_part(root, part) for part in ("train", "test"))
    return split("svhn", pool, sizes, test, 10, seed)


def svhn_part(root: Root, part: str) -> Part:
    """The raw images (n, 3, 32, 32), bytes, and labels of "train" or "test"."""
    from torchvision.datasets import SVHN  # takes two seconds: only where it is needed

    root = data_root(root)
    read = partial(SVHN, str(root), split=part, download=True)
    data = fetch("SVHN", root, f"{part}_32x32.mat", read)
    return torch.from_numpy(data.data), torch.from_numpy(data.labels).long()
