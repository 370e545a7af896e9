"""Training data: (x, y) tensors or a re-iterable of batches, checked, counted and put in order."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, rows, to_device, tree_map
from gfo.core.checks import check_x, check_y
from gfo.core.noise import generator

Batches = tuple[Any, Tensor] | Iterable


def ordered(data: Batches, batch: int, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch.

    A last batch of one row is left out, since BatchNorm cannot train on it, unless one was asked
    for.

    Args:
        data: Tensors, whose order is drawn from (seed, epoch), or an iterable, taken as it comes.
        batch: Rows per batch of tensors.
        seed: Of the run.
        epoch: From 0.
    """
    if not isinstance(data, tuple):
        yield from data
        return
    x, y = data
    order = torch.randperm(len(y), generator=generator(seed, "order", epoch)).to(y.device)
    for index in order.split(batch):
        if len(index) > 1 or batch == 1 or len(y) == 1:
            yield tree_map(lambda t, index=index: t[index], x), y[index]


def prepare(net: Attached, data: Batches, what: str) -> tuple[Batches, int]:
    """Check the data; put tensors on the device; count rows.

    Args:
        net: The network that reads them.
        data: (x, y) tensors or a re-iterable of batches.
        what: Its name in messages.

    Returns:
        The data and its number of rows.

    Raises:
        ValueError: For data that are neither, can be read only once, are empty or do not fit.
    """
    if isinstance(data, list) and len(data) == 2 and isinstance(data[1], Tensor):
        data = tuple(data)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"{what} is a tuple of {len(data)}, needs (x, y)")
        check_x(net, data[0])
        check_y(net, *data)
        return to_device(data, device_of(net)), rows(data[0])
    if iter(data) is data:
        raise ValueError(f"{what} can be read only once: pass a list or a DataLoader of batches")
    count = 0
    for pair in data:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{what} yields {describe_batch(pair)}, needs batches (x, y)")
        x, y = pair
        check_x(net, x)
        check_y(net, x, y)
        count += rows(x)
    if not count:
        raise ValueError(f"{what} is empty: it yields no batch")
    return data, count


def describe_batch(batch: Any) -> str:
    what = f"a {type(batch).__name__}"
    return f"{what} of {len(batch)}" if isinstance(batch, tuple | list) else what


class Data:
    """Training and validation data: checked, on the network's device, counted.

    Args:
        net: The network that reads them.
        train: (x, y) tensors or a re-iterable of batches.
        valid: The same, or None.
        batch: Rows per batch of tensors; an iterable brings its own batches, said as 0.
        counted: Whether the batches of an iterable have to be counted too.

    Attributes:
        per_epoch: Training steps per epoch, 0 where they were not counted.

    Raises:
        ValueError: As in `prepare`.
    """

    def __init__(
        self, net: Attached, train: Batches, valid: Batches | None, batch: int, counted: bool
    ):
        self.train, self.n = prepare(net, train, "train")
        self.valid, self.valid_n = (None, 0) if valid is None else prepare(net, valid, "valid")
        self.batch = batch if isinstance(self.train, tuple) else 0
        if self.batch:
            odd_row = batch > 1 and self.n % batch == 1  # `ordered` leaves out a last one
            self.per_epoch = max(1, math.ceil(self.n / batch) - odd_row)
        else:
            self.per_epoch = sum(1 for _ in self.train) if counted else 0
