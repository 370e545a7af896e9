"""Compute the part of a network before the first mask once, for all samples.

Samples are folded into the batch: S·B rows. Expanding the activation at the first site would not
do on a residual network, whose shortcut carries B rows past that site. So the network runs twice:
on B rows up to the first site, where it stops, each finished module's output kept; then on the
folded rows, where those modules give their kept rows, repeated, instead of computing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .attach import Attached
from .tree import call


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
                self.kept.setdefault(module, []).append(output)
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
                return output.repeat(times, *[1] * (output.dim() - 1))  # (B, ...) -> (S·B, ...)

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
