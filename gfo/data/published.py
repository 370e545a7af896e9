"""The official CIFAR-10-C and CIFAR-100-C arrays, where the user has them."""

from pathlib import Path

import numpy as np
import torch

from gfo.data.corruptions import corruption
from gfo.data.splits import DIGESTS, Part, Root, check_file, data_root, unit

ARCHIVES, MD5 = DIGESTS["archives"], DIGESTS["cifar-c"]
IMAGES = 10_000  # the whole test set, once per severity


def has_cifar_c(dataset: str, root: Root = None) -> bool:
    """Whether a folder of official arrays for `dataset` lies under root, whole or not."""
    return dataset in ARCHIVES and (data_root(root) / ARCHIVES[dataset]["folder"]).is_dir()


def cifar_c(dataset: str, name: str, severity: int, root: Root = None) -> Part:
    """The 10,000 test images of `dataset` under a corruption, as published.

    By Hendrycks & Dietterich (2019).

    Args:
        dataset: "cifar10" or "cifar100".
        name: The corruption, see `corrupt`.
        severity: 1 to 5.
        root: Where the folder of arrays lies, see `gfo.data.load`.

    Returns:
        Raw images (n, 3, 32, 32) in [0, 1], in the order of the test set, and labels.

    Raises:
        ValueError: For a name or severity that does not exist.
        FileNotFoundError: Where the arrays are missing or are not the published ones.
    """
    if dataset not in ARCHIVES:
        raise ValueError(f"there is no official corrupted {dataset}; known: {', '.join(ARCHIVES)}")
    corruption(name, severity)  # raises where there is none
    rows = slice((severity - 1) * IMAGES, severity * IMAGES)
    folder = data_root(root) / ARCHIVES[dataset]["folder"]
    x, y = (_array(folder / f"{part}.npy", dataset, part)[rows] for part in (name, "labels"))
    images = torch.from_numpy(x.copy()).permute(0, 3, 1, 2)  # (n, 32, 32, 3) -> (n, 3, 32, 32)
    return unit(images), torch.from_numpy(y.copy()).long()


def _array(path: Path, dataset: str, part: str) -> np.ndarray:
    archive = "{folder}.tar ({address})".format(**ARCHIVES[dataset])
    if not path.is_file():
        cure = f"unpack {archive} under root or GFO_DATA, or use gfo.data.corrupt"
        raise FileNotFoundError(f"no {str(path)!r}: {cure}")
    check_file(path, MD5[dataset][part], f"unpack it again from {archive}", "md5")
    return np.load(path, mmap_mode="r")
