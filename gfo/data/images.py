"""Images with labels: digits, MNIST, CIFAR, SVHN."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gfo.core.files import declared
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
    from sklearn.datasets import load_digits  # here: a second to load

    bunch: Any = load_digits()
    small = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None]  # (n, 1, 8, 8)
    x = torch.nn.functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
    return x.repeat(1, channels, 1, 1), torch.tensor(bunch.target, dtype=torch.long)


SETS = declared(__file__)  # sizes: how many to train, to validate and to tune by default


def from_torchvision(
    name: str, root: Root = None, seed: int = 0, *, sizes: Sequence[int] | None = None
) -> Splits:
    """A published data set: its test part to test, the rest cut by seed.

    Args:
        name: "mnist", 28×28, 60,000 to cut and 10,000 to test; "cifar10" and "cifar100", colour
            images 32×32, 50,000 and 10,000; "svhn", colour images 32×32 of house numbers, 73,257
            and 26,032.
        root: Where the files lie, see `gfo.data.load`.
        seed: Of the split.
        sizes: How many to train, to validate and to tune, if not those in `images.toml`.
    """
    pool, test = (READERS[name](root, train) for train in (True, False))
    return split(name, pool, sizes or SETS[name]["sizes"], test, SETS[name]["classes"], seed)


for _name in SETS:
    DATASETS[_name] = partial(from_torchvision, _name)


def _part(root: Root, train: bool) -> Part:
    from torchvision.datasets import mnist  # takes two seconds: only where it is needed

    # as made by its constructor it would take a processed/ of old, unchecked, before the files
    files: Any = mnist.MNIST.__new__(mnist.MNIST)
    files.root = str(root := data_root(root))
    fetch("MNIST", root, "MNIST/raw", files.download)
    part = Path(files.raw_folder) / ("train" if train else "t10k")
    paths = [Path(f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        check_file(path, DIGESTS["mnist"][path.name], f"delete it, {path.name}.gz is unpacked anew")
    images, labels = mnist.read_image_file(str(paths[0])), mnist.read_label_file(str(paths[1]))
    return images[:, None].float() / 255, labels.long()  # (n, 28, 28) -> (n, 1, 28, 28)


def cifar_part(name: str, root: Root, train: bool) -> Part:
    """The 50,000 or the 10,000 raw images (n, 3, 32, 32), bytes, and labels, in their order."""
    data = _read(name.upper(), root, SETS[name]["folder"], train=train)
    x = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (n, 32, 32, 3) -> (n, 3, 32, 32)
    return x.contiguous(), torch.tensor(data.targets, dtype=torch.long)


def svhn_part(root: Root, train: bool) -> Part:
    """The raw images (n, 3, 32, 32), bytes, and labels to train or to test, in their order."""
    part = "train" if train else "test"
    data = _read("SVHN", root, f"{part}_32x32.mat", split=part)
    return torch.from_numpy(data.data), torch.from_numpy(data.labels).long()


def _read(kind: str, root: Root, holds: str, **which: Any) -> Any:
    from torchvision import datasets  # takes two seconds: only where it is needed

    root = data_root(root)
    read = partial(getattr(datasets, kind), str(root), download=True, **which)
    return fetch(kind, root, holds, read)


# read(root, train)
READERS = {"mnist": lambda root, train: _part(root, train), "svhn": svhn_part}
READERS |= {name: partial(cifar_part, name) for name in ("cifar10", "cifar100")}
