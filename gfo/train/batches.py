"""Training data: (x, y) tensors or a re-iterable of batches, checked, counted and put in order."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gfo.core.attached import Attached
from gfo.core.batch import LABELS, device_of, from_mapping, to_device, tree_map
from gfo.core.blocks import is_loader
from gfo.core.checks import check_batch
from gfo.core.noise import generator

Batches = tuple[Any, Any] | Iterable


def ordered(
    data: Batches, batch: int, seed: int, epoch: int, lone: bool = True
) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch.

    A last batch of one row is left out, since BatchNorm cannot train on it, unless one was asked
    for.

    Args:
        data: Tensors, whose order is drawn from (seed, epoch), or an iterable, taken as it comes.
        batch: Rows per batch of tensors.
        seed: Of the run.
        epoch: From 0.
        lone: Whether an iterable's batch of one row is kept beside larger ones.
    """
    if not isinstance(data, tuple):
        largest = getattr(data, "batch_size", None) or 1
        for x, y in data:
            largest = max(largest, len(y))
            if lone or len(y) > 1 or largest == 1:
                yield x, y
        return
    x, y = data
    order = torch.randperm(len(y), generator=generator(seed, "order", epoch)).to(y.device)
    for index in order.split(batch):
        if len(index) > 1 or batch == 1 or len(y) == 1:
            yield tree_map(lambda t, index=index: t[index], x), y[index]


def pairs(data: Batches) -> Iterable:
    """The (x, y) of the data: tensors are one pair."""
    return [data] if isinstance(data, tuple) else data


class Stream:
    """A re-iterable of batches, each given as a checked pair (x, y) of tensors.

    Args:
        net: The network that reads them.
        source: Yields pairs, or mappings with the labels under one of `LABELS`.
        what: Its name in messages.

    Attributes:
        batch_size: Rows of the largest batch, None where nothing tells.
    """

    def __init__(self, net: Attached, source: Iterable, what: str):
        self.net, self.source, self.what = net, source, what
        self.batch_size = getattr(source, "batch_size", None)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for batch in self.source:
            pair = from_mapping(batch) if isinstance(batch, Mapping) else batch
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                of = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
                if isinstance(batch, Mapping):
                    of = f" with none of the keys {', '.join(LABELS)}"
                found = f"a {type(batch).__name__}{of}"
                raise ValueError(f"{self.what} yields {found}, needs batches (x, y)")
            yield check_batch(self.net, *pair)

    def sizes(self) -> tuple[int, list[int]]:
        """Rows in all and of each batch, as a DataLoader tells them unread, else counted."""
        loader, found, total = self.source, [], 0
        if isinstance(loader, DataLoader) and loader.batch_size is not None:
            with contextlib.suppress(TypeError, NotImplementedError):  # no length
                total = len(loader.sampler)  # pyright: ignore[reportArgumentType]  # it may have one
                found = blocks(total, loader.batch_size, loader.drop_last)
        found = found or [len(y) for _, y in self]
        self.batch_size = max(found, default=1)
        return total or sum(found), found


def prepare(net: Attached, data: Batches, what: str) -> tuple[Any, Tensor] | Stream:
    """Check tensors and put them on the device; wrap an iterable, so that its batches are checked.

    Args:
        net: The network that reads them.
        data: (x, y) tensors or arrays, or a re-iterable of batches.
        what: Its name in messages.

    Raises:
        ValueError: For data that are neither, can be read only once, or do not fit.
    """
    if isinstance(data, list) and len(data) == 2 and isinstance(data[1], Tensor | np.ndarray):
        data = tuple(data)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"{what} is a tuple of {len(data)}, needs (x, y)")
        return to_device(check_batch(net, *data), device_of(net))
    if not isinstance(data, Iterable):
        raise ValueError(f"{what} is a {type(data).__name__}, needs (x, y) or batches of such")
    if isinstance(data, Iterator):
        raise ValueError(f"{what} can be read only once: pass a list or a DataLoader of batches")
    return Stream(net, data, what)


class Data:
    """Training and validation data: checked, on the network's device, counted.

    A DataLoader that tells its size is not read for it: its batches are checked as they come. What
    else is iterable is read once.

    Args:
        net: The network that reads them.
        train: (x, y) tensors or a re-iterable of batches.
        valid: The same, or None.
        batch: Rows per batch of tensors; an iterable brings its own batches, said as 0.
        counted: Whether steps have to be known.
        n: Rows of `train`, which then need no counting.

    Attributes:
        per_epoch: Training steps per epoch, 0 where they are not known.
        lone: Whether training keeps an iterable's batch of one row: not beside BatchNorm.

    Raises:
        ValueError: As in `prepare`, and for no rows.
    """

    def __init__(
        self, net: Attached, train: Batches, valid: Any, batch: int, counted: bool, n: int | None
    ):
        norm = nn.modules.batchnorm._BatchNorm
        self.lone = not any(isinstance(module, norm) for module in net.model.modules())
        self.train = prepare(net, train, "train")
        self.batch = batch if isinstance(self.train, tuple) else 0
        self.valid, self.valid_n = None, 0
        if valid is not None:
            is_loader(valid)  # one that shuffles has no fixed noise
            self.valid = prepare(net, valid, "valid")
            self.valid_n, _ = count(self.valid, "valid", 0, True)
            next(iter(pairs(self.valid)))  # or its faults would come up after an epoch
        self.n, self.per_epoch = n or 0, 0
        if n is None or counted or self.batch:
            found, self.per_epoch = count(self.train, "train", batch, self.lone)
            self.n = n or found


def count(data: tuple[Any, Tensor] | Stream, what: str, batch: int, lone: bool) -> tuple[int, int]:
    """Rows, those too that a DataLoader leaves out of an epoch, and the batches of `ordered`.

    Raises:
        ValueError: Where there are none.
    """
    if isinstance(data, Stream):
        total, sizes = data.sizes()
    else:
        total, lone = len(data[1]), False
        sizes = blocks(total, batch or total)
    if not sum(sizes):
        raise ValueError(f"{what} is empty: it yields no batch")
    return total, sum(lone or rows > 1 or max(sizes) == 1 for rows in sizes)


def blocks(rows: int, size: int, whole: bool = False) -> list[int]:
    """Sizes of the batches that `rows` make; without a smaller last one if asked for `whole`."""
    return [size] * (rows // size) + [rows % size] * (rows % size > 0 and not whole)
