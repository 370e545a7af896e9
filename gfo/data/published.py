"""The official CIFAR-10-C and CIFAR-100-C arrays, where the user has them."""

import functools
import hashlib
from pathlib import Path

import numpy as np
import torch

from gfo.data.corruptions import corruption
from gfo.data.splits import Part, data_root, unit

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
ADDRESS = {"cifar10": "zenodo.org/records/2535967", "cifar100": "zenodo.org/records/3555552"}
MD5 = {
    "cifar10": {
        "labels": "c439b113295ed5254878798ffe28fd54",
        "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
        "snow": "bb238de8555123da9c282dea23bd6e55",
        "frost": "31f6ab3bce1d9934abfb0cc13656f141",
    },
    "cifar100": {
        "labels": "bb4026e9ce52996b95f439544568cdb2",
        "gaussian_noise": "ecc4d366eac432bdf25c024086f5e97d",
        "snow": "0237be164583af146b7b144e73b43465",
        "frost": "3a39c6823bdfaa0bf8b12fe7004b8117",
    },
}
IMAGES = 10_000  # the whole test set, once per severity


def has_cifar_c(dataset: str, root: str | Path | None = None) -> bool:
    """Whether a folder of official arrays for `dataset` lies under root, whole or not."""
    return dataset in FOLDERS and (data_root(root) / FOLDERS[dataset]).is_dir()


def cifar_c(dataset: str, name: str, severity: int, root: str | Path | None = None) -> Part:
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
    if dataset not in FOLDERS:
        raise ValueError(f"there is no official corrupted {dataset}; known: {', '.join(FOLDERS)}")
    corruption(name, severity)  # raises where there is none
    rows = slice((severity - 1) * IMAGES, severity * IMAGES)
    folder = data_root(root) / FOLDERS[dataset]
    x, y = (_array(folder / f"{part}.npy", dataset, part)[rows] for part in (name, "labels"))
    images = torch.from_numpy(x.copy()).permute(0, 3, 1, 2)  # (n, 32, 32, 3) -> (n, 3, 32, 32)
    return unit(images), torch.from_numpy(y.copy()).long()


def _array(path: Path, dataset: str, part: str) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {str(path)!r}: unpack {FOLDERS[dataset]}.tar ({ADDRESS[dataset]}) under root or "
            "GFO_DATA, or use gfo.data.corrupt"
        )
    if _md5(path, path.stat().st_mtime_ns) != MD5[dataset][part]:
        raise FileNotFoundError(
            f"{str(path)!r} is not the published file (its MD5 differs): unpack it again from "
            f"{FOLDERS[dataset]}.tar ({ADDRESS[dataset]})"
        )
    return np.load(path, mmap_mode="r")


@functools.cache
def _md5(path: Path, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
