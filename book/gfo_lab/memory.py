"""How much memory a call holds at its peak, to the byte."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """The peak of the bytes in storages that operators made inside the block and that were alive at
    once. What stood before counts as nothing, a view neither, nor what an operator takes and gives
    back while it runs."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0  # bytes by address; a storage leaves when it is freed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        seen = [(t, 0) for t in tree_leaves((args, kwargs))] + [(t, 1) for t in tree_leaves(found)]
        for t, new in seen:
            if torch.is_tensor(t) and (key := t.untyped_storage()._cdata) not in self.held:
                self.held[key] = new * t.untyped_storage().nbytes()
                weakref.finalize(t.untyped_storage(), self.held.pop, key)
        self.peak = max(self.peak, sum(self.held.values()))
        return found


def peak_mb(call: Callable[[], Any], device: torch.device) -> float:
    """MiB that a call holds at its peak, above what stood before: on a GPU by torch's allocator, on
    a CPU, where that keeps no book, by `Live`."""
    if device.type != "cuda":
        with Live() as live:
            call()
        return live.peak / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
