"""Inputs that come in batches: read from a loader, checked, and put into blocks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils import data

from gfo.core.attached import Attached
from gfo.core.batch import as_tensors, from_mapping, leaves, row_slice, rows, tree_map

# Inputs per block: noise is drawn block by block, so that it cannot depend on chunking. Fewer
# where the noise of a block would pass these bytes.
ROWS, NOISE = 256, 2**30
READ_TWICE = 1000  # rows, or batches, by which two orders are told apart


def is_loader(x: Any) -> bool:
    """Whether x is an iterable of batches, not a batch; ValueError for a loader that shuffles."""
    if any(map(shuffles, samplers(x))):
        raise ValueError("the loader shuffles, so that no row of an answer is known: shuffle=False")
    if getattr(x, "in_order", True) is False:
        raise ValueError("the loader gives batches as they get ready: in_order=True")
    batch = torch.Tensor | np.ndarray | Mapping | tuple | list | str
    return not isinstance(x, batch) and hasattr(x, "__iter__")


def samplers(loader: Any) -> list[Any]:
    """What orders a DataLoader's rows, be it by way of its batches; None for none."""
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), getattr(batches, "sampler", None), batches]


def shuffles(sampler: Any) -> bool:
    """Whether rows come in an order that is drawn: by a sampler of torch or its heir, by one that
    says so, as `DistributedSampler` does, or by one that has another order when read again."""
    drawn = data.RandomSampler | data.SubsetRandomSampler | data.WeightedRandomSampler
    known = isinstance(sampler, drawn) or getattr(sampler, "shuffle", False) is True
    # what torch makes batches by has the order of its own sampler
    if known or not isinstance(sampler, data.Sampler) or type(sampler) is data.BatchSampler:
        return known
    one, again = (list(map(str, islice(sampler, READ_TWICE))) for _ in range(2))
    return one != again


def inputs(net: Attached, item: Any) -> tuple[Any, Sequence]:
    """x of a loader's batch x, (x, …) or a mapping with labels, and the rest of the batch.

    x is as many of the first parts as hold as many tensors as the example did.
    """
    item, want = as_tensors(item), len(net.spec.shapes)
    if isinstance(item, Mapping) and len(leaves(item)) > want:
        item = from_mapping(item)
    if isinstance(item, tuple | list):
        for count in range(1, len(item) + 1):
            if len(leaves(item[:count])) >= want:
                return item[0] if count == 1 else tuple(item[:count]), item[count:]
    return item, ()


def in_blocks(parts: Iterable[Any], step: int) -> Iterator[Any]:
    """The rows of all batches in blocks of `step`, whatever the batches' own size.

    A block ends early where lengths, sizes or devices change.
    """
    held: Any = None
    for x in parts:
        if held is not None and alike(held, x):
            x = tree_map(lambda a, b: torch.cat([a, b]), held, x)
        elif held is not None:
            yield held
        while rows(x) > step:
            yield row_slice(x, 0, step)
            x = row_slice(x, step, rows(x))
        held = x
    if held is not None:
        yield held


def alike(a: Any, b: Any) -> bool:
    """Whether the rows of two batches can be put together."""
    a, b = (tree_map(lambda t: (t.shape[1:], t.dtype, t.device), x) for x in (a, b))
    return a == b  # what is no tensor is itself


def block_rows(net: Attached, samples: int) -> int:
    """How many inputs share a block of a prediction from so many masks."""
    return max(1, min(ROWS, NOISE // (4 * samples * bits(net))))


def fold_of(net: Attached, x: Any, memory: int) -> int:
    """How many samples of the block x one pass folds: what is largest of a row decides.

    Inputs count a quarter, being one tensor where activations are several.
    """
    if not net.spec.folds:
        return 1
    x_bytes = sum(t.numel() * t.element_size() for t in leaves(x)) // (4 * rows(x))
    return max(1, memory // (max(net.spec.row_bytes, 4 * bits(net), x_bytes) * rows(x)))


def bits(net: Attached) -> int:
    """Mask bits of one input, as the example had them."""
    return sum(site.width * (site.tokens or 1) for site in net.sites)
