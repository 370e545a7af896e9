"""Compute the part of a network before the first mask once, for all samples.

Samples are folded into the batch: S·B rows. Expanding the activation at the first site would not
do on a residual network, whose shortcut carries B rows past that site. So the network runs twice:
on B rows up to the first site, where it stops, each finished module's output kept; then on the
folded rows, where those modules give their kept rows, repeated, instead of computing.
"""

import contextlib
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from gfo.core.attached import Attached
from gfo.core.batch import call, leaves, repeat_rows
from gfo.core.sites import exchanged

# One copy of the rows is made on writing only: most are read, or not even that, by the next kept
# module. torch's own name for that is private still; without it each is made.
COPY = getattr(torch, "_lazy_clone", torch.clone)


class _Reached(Exception):
    """The first site has run."""


class Prefix:
    """The finished modules of one batch of B rows, ready to be replayed on S·B rows.

    Attributes:
        kept: A module's calls in order; None where it has to run again, because it changed its
            input in place or gave its input back. A call inside a kept one is not made again, so it
            is not here.
    """

    def __init__(self, net: Attached, x: Any):
        self.kept: dict[nn.Module, list[Tensor | None]] = {}
        if net.spec.batched and all(site.axes[0] == "B" for site in net.sites):
            for module, output in finished(net, x):
                self.kept.setdefault(module, []).append(output)

    def replay(self, times: int) -> contextlib.AbstractContextManager:
        """Inside the block the finished modules return their rows `times` times over."""

        def give(outputs: list[Tensor | None], original):
            waiting = iter(outputs)

            def forward(*args, **kwargs):
                output = next(waiting, None)  # none left: it runs again behind the first site
                if output is None:
                    return original(*args, **kwargs)
                return COPY(output) if times == 1 else repeat_rows(output, times)

            return forward

        return swapped({m: give(outs, m.forward) for m, outs in self.kept.items()})


def finished(net: Attached, x: Any) -> list[tuple[nn.Module, Tensor | None]]:
    """Run the network up to its first site; the modules that returned, in order: see `Prefix`."""
    log: list[tuple[nn.Module, Tensor | None]] = []

    def keep(module: nn.Module, original):
        def forward(*args, **kwargs):
            start, given = len(log), leaves((args, kwargs))
            before = [t._version for t in given]
            output = original(*args, **kwargs)
            again = [t._version for t in given] != before or any(output is t for t in given)
            if not again:
                del log[start:]
            # a copy: what the model does to its output in place, it does again on replay
            log.append((module, None if again else output.clone()))
            return output

        return forward

    def stop(layer: int, h: Tensor, real: Tensor | None) -> Tensor:
        raise _Reached

    modules = [net.model.get_submodule(name) for name in net.spec.batched if name]
    # outside inference mode tensors count their changes
    with torch.inference_mode(False), torch.no_grad(), contextlib.suppress(_Reached):
        with swapped({m: keep(m, m.forward) for m in modules}), net.handling(stop):
            call(net.model, x)
    return log


def swapped(forwards: dict[nn.Module, Any]) -> contextlib.AbstractContextManager:
    """Give modules another `forward` inside the block, and in this thread alone."""
    me = get_ident()

    def here(forward: Any, original: Any) -> Any:
        return lambda *args, **how: (forward if get_ident() == me else original)(*args, **how)

    return exchanged((vars(m), "forward", here(f, m.forward)) for m, f in forwards.items())
