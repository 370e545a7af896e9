"""Training data: (x, y) tensors or a re-iterable of batches, checked, counted and put in order."""

from __future__ import annotations

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
    """The batches of one epoch: tensors in an order drawn from (seed, epoch), iterables as they
    come. A last batch of one row is left out, since BatchNorm cannot train on it, unless one was
    asked for."""
    if not isinstance(data, tuple):
        yield from data
        return
    x, y = data
    order = torch.randperm(len(y), generator=generator(seed, "order", epoch)).to(y.device)
    for index in order.split(batch):
        if len(index) > 1 or batch == 1 or len(y) == 1:
            yield tree_map(lambda t, index=index: t[index], x), y[index]


def prepare(net: Attached, data: Batches, what: str) -> tuple[Batches, int]:
    """Check (x, y) tensors or a re-iterable of batches; put tensors on the device; count rows."""
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


def count(train, n: int, batch: int) -> int:
    """Training steps an epoch, for (x, y) tensors of n rows or an iterable of batches."""
    if not isinstance(train, tuple):
        return sum(1 for _ in train)
    odd_row = batch > 1 and n % batch == 1  # `fit` leaves out a last batch of one row
    return max(1, math.ceil(n / batch) - odd_row)
