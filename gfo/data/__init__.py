"""Data sets, one file each, as tensors that stay on a device."""

from gfo.core.registry import DATASETS
from gfo.data import images, many_answers
from gfo.data.corruptions import corrupt
from gfo.data.ood import outside
from gfo.data.published import cifar_c
from gfo.data.splits import Root, Splits
from gfo.data.transforms import crop_flip, random_labels, rotate


def load(name: str = "digits", root: Root = None, seed: int = 0, **how) -> Splits:
    """The data set `name`, split by `seed`.

    Args:
        name: A registered data set, such as "digits" or "cifar10".
        root: Where its files lie or are downloaded to; by default the folder in the environment
            variable GFO_DATA, else ./data. "digits" needs none.
        seed: Of the split.
        **how: Further arguments of that data set, such as `sizes` of CIFAR.

    Raises:
        ValueError: For an unknown name.
        FileNotFoundError: Where files are missing and cannot be downloaded.
    """
    return DATASETS[name](root, seed, **how)


__all__ = [
    "Splits", "cifar_c", "corrupt", "crop_flip", "load", "outside", "random_labels", "rotate",
]  # fmt: skip
