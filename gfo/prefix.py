"""Compute the part of a network before the first mask once, for all samples.

Samples are folded into the batch: S·B rows. Expanding the activation at the first site would not
do on a residual network, whose shortcut carries B rows past that site. So the network runs twice:
on B rows up to the first site, where it stops, each finished module's output kept; then on the
folded rows, where those modules give their kept rows, repeated, instead of computing. Most of
these are read by no one but the next such module: rows are repeated when first read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .attach import Attached
from .tree import call, tree_map


class Repeated(Tensor):
    """`times` copies of `rows`, one after the other, made when an operator first reads them."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, rows: Tensor, times: int):
        shape = (times * rows.shape[0], *rows.shape[1:])
        how = dict(dtype=rows.dtype, device=rows.device, layout=rows.layout)
        return Tensor._make_wrapper_subclass(cls, shape, **how)

    def __init__(self, rows: Tensor, times: int):
        self.rows, self.times, self.made = rows, times, None

    def whole(self) -> Tensor:
        """The copies. They stay, so that what happens to them in place is not lost."""
        if self.made is None:
            # (B, ...) -> (S·B, ...); unlike `repeat`, this keeps channels-last
            self.made = torch.cat([self.rows] * self.times)
        return self.made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def whole(t: Tensor) -> Tensor:
            return t.whole() if isinstance(t, cls) else t

        return func(*tree_map(whole, args), **tree_map(whole, kwargs or {}))


class _Reached(Exception):
    """The first site has run."""


class Prefix:
    """The finished modules of one batch of B rows, ready to be replayed on S·B rows."""

    def __init__(self, net: Attached, x: Any):
        self.kept: dict[nn.Module, list[Tensor]] = {}
        if net.spec.batched and all(site.axes[0] == "B" for site in net.sites):
            self._record(net, x)

    def _record(self, net: Attached, x: Any) -> None:
        def keep(module: nn.Module, original):
            def forward(*args, **kwargs):
                output = original(*args, **kwargs)
                # a copy: what the model does to its output in place, it does again on replay
                self.kept.setdefault(module, []).append(output.clone())
                return output

            return forward

        def stop(layer: int, h: Tensor, real: Tensor | None) -> Tensor:
            raise _Reached

        modules = [net.model.get_submodule(name) for name in net.spec.batched if name]
        with swapped({m: keep(m, m.forward) for m in modules}), net.visiting(stop):
            with contextlib.suppress(_Reached):
                call(net.model, x)

    def replay(self, times: int) -> contextlib.AbstractContextManager:
        """Inside the block the finished modules return their rows `times` times over."""

        def give(module: nn.Module, outputs: list[Tensor], original):
            waiting = iter(outputs)

            def forward(*args, **kwargs):
                output = next(waiting, None)
                if output is None:  # a module that runs again behind the first site
                    return original(*args, **kwargs)
                return Repeated(output, times)

            return forward

        return swapped({m: give(m, outs, m.forward) for m, outs in self.kept.items()})


@contextlib.contextmanager
def swapped(forwards: dict[nn.Module, Any]) -> Iterator[None]:
    """Give modules another `forward` inside the block."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, before in own.items():
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before
