"""Four parts of a data set, normalised by the training part."""

import functools
import getpass
import hashlib
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from gfo.core.files import declared
from gfo.core.noise import generator

DIGESTS = declared(__file__, "digests.toml")
Root = str | Path | None
Part = tuple[Tensor, Tensor]  # x (n, channels, height, width) float, y (n,) long


@dataclass(frozen=True)
class Splits:
    """The four parts: train and valid for fitting, tune for choosing settings or a
    temperature, test for reporting.

    Images are (x − mean) / std with one mean and std per channel, of the training part.
    """

    name: str
    train: Part
    valid: Part
    tune: Part
    test: Part
    mean: Tensor
    std: Tensor
    classes: int

    def raw(self, x: Tensor) -> Tensor:
        """Normalised images (n, C, H, W) as raw ones in [0, 1]; other x on its own scale."""
        return (x * self.std + self.mean).clamp(0, 1) if x.dim() == 4 else x * self.std + self.mean

    def normalised(self, raw: Tensor) -> Tensor:
        """Raw images in [0, 1], of this data set or another, as the networks of this one read them.

        Raises:
            ValueError: Where their shape is another.
        """
        got, need = (tuple(x.shape[1:]) for x in (raw, self.train[0]))
        if got != need:
            raise ValueError(f"images of shape {got}, {self.name} has {need}")
        return (raw - self.mean) / self.std

    def shifted(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` applied to x as `raw` gives it, then normalised again."""
        return self.normalised(change(self.raw(x)))


def split(
    name: str, pool: Part, sizes: Sequence[int], test: Part | None, classes: int, seed: int
) -> Splits:
    """Cut raw images into train, valid and tune, and normalise them.

    Args:
        name: Of the data set.
        pool: Images (float in [0, 1], or uint8) and labels to cut, by a permutation drawn from
            `seed`.
        sizes: Of train, valid and tune.
        test: The test part; None takes the rest of `pool`.
        classes: K, how many there are.
        seed: Of the permutation.

    Raises:
        ValueError: Where `sizes` ask for more images than there are, or for none to train on.
    """
    x, y = pool
    if sizes[0] < 2 or min(sizes) < 0 or sum(sizes) > len(y):
        asked = "at least 2 to train on, and no more than there are for train + valid + tune"
        raise ValueError(f"{name} has {len(y)} images to divide, sizes is {sizes}: needs {asked}")
    order = torch.randperm(len(y), generator=generator(seed, name, "split"))
    cuts = order.split([*sizes, len(y) - sum(sizes)])
    *parts, rest = ((unit(x[index]), y[index]) for index in cuts)
    parts.append(rest if test is None else (unit(test[0]), test[1]))
    mean = parts[0][0].mean((0, 2, 3), keepdim=True)  # (n, C, H, W) -> (1, C, 1, 1)
    std = parts[0][0].std((0, 2, 3), keepdim=True)
    parts = [((images - mean) / std, labels) for images, labels in parts]
    return Splits(name, *parts, mean=mean, std=std, classes=classes)


def unit(x: Tensor) -> Tensor:
    """Images as floats in [0, 1]; bytes are divided by 255."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def fetch(name: str, root: Path, holds: str, read: Callable[[], Any]) -> Any:
    """What `read` gets from torchvision, which downloads and verifies checksums.

    One process at a time: two that download would find each other's half-written files. The lock
    is not under root, which may be read-only; each user has one, since the folder of temporary
    files keeps others out of it.

    Args:
        name: Of the data set.
        root: Where its files lie.
        holds: What root has to hold, for the message.
        read: Reads, and downloads what is missing.

    Raises:
        FileNotFoundError: In one line, where that fails.
    """
    place = zlib.crc32(f"{getpass.getuser()} {root.resolve()}".encode())
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"gfo-{name}-{place:08x}.lock"):
            return read()
    except Exception as error:  # torchvision raises what its mirrors raise
        gone = f"{name} is not complete under {str(root)!r} and could not be downloaded"
        cure = f"set GFO_DATA or root to a folder that holds {holds}"
        raise FileNotFoundError(f"{gone} ({type(error).__name__}): {cure}") from None


def check_file(path: Path, digest: str, cure: str, algorithm: str = "sha256") -> None:
    """Whether a file is the published one, asked once per process and state of the file.

    Args:
        path: The file.
        digest: Of the published one, in hex digits.
        cure: What to do where it is another, for the message.
        algorithm: Of the digest, as `hashlib` has it.

    Raises:
        FileNotFoundError: Where it is another; under GFO_UNCHECKED a warning says so.
    """
    about = path.stat()
    found = _digest(path, algorithm, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if found != digest:
        refuse(f"{str(path)!r} is not the published file (its {algorithm.upper()} differs): {cure}")


def refuse(message: str) -> None:
    """Raise FileNotFoundError, or warn where GFO_UNCHECKED says that the files are the user's own.

    Args:
        message: Names the file, what is wrong with it and the cure.
    """
    if os.environ.get("GFO_UNCHECKED", "0") in ("", "0"):
        raise FileNotFoundError(f"{message}; GFO_UNCHECKED=1 reads files of your own making")
    warnings.warn(f"{message}; read all the same, as GFO_UNCHECKED is set", stacklevel=3)


@functools.cache
def _digest(path: Path, algorithm: str, *state: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def data_root(root: Root) -> Path:
    """Where data sets lie: `root`, else GFO_DATA, else ./data."""
    return Path(root or os.environ.get("GFO_DATA") or "data")
