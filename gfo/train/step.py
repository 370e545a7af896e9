"""One step of training: loss, gradients, optimisers. On a GPU, if asked, as one CUDA graph."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, rows, tree_map
from gfo.core.blocks import alike
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import Noise
from gfo.methods.base import Loss

WARM_UP = 3  # steps on a side stream before a capture, as torch asks for


class Step:
    """`step(batch_pass)` moves the weights once and returns the loss they had before.

    Args:
        net: The network, in its training modes.
        loss: `net.method.loss`, compiled or not.
        optimizers: One or more, which share no parameter.
        n: Size of the training set.
        bf16: Autocast to bfloat16, entered anew for each loss, since it keeps the weights that it
            has cast until it is left.
    """

    def __init__(
        self, net: Attached, loss: Callable[..., Loss], optimizers: Iterable, n: int, bf16: bool
    ):  # fmt: skip
        self.loss, self.optimizers, self.n = loss, list(optimizers), n
        self.device = device_of(net)
        self.cast = torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def __call__(self, batch_pass: BatchPass) -> Loss:
        with self.cast:
            found = self.loss(batch_pass, self.n)
        for each in self.optimizers:
            each.zero_grad()
        found.total.backward()
        for each in self.optimizers:
            each.step()
        return found


class Standing(BatchPass):
    """A batch whose x, y and noise stay where they are in memory: later ones are copied in."""

    def __init__(self, first: BatchPass):
        x, y = tree_map(Tensor.clone, (first.x, first.y))
        super().__init__(first.net, x, y, first.key, first.shard)
        self.drawn: dict[tuple[int, int], Noise] = {}

    def noise(self, draw: int = 0, repeat: int = 1) -> Noise:
        """Drawn anew where the loss first asks for it, else what stands there."""
        if (draw, repeat) not in self.drawn:
            self.drawn[draw, repeat] = super().noise(draw, repeat)
        return self.drawn[draw, repeat]

    def take(self, batch: BatchPass) -> None:
        """Copy another batch of the same shapes in, with the noise of its step."""
        self.key = batch.key
        tree_map(Tensor.copy_, (self.x, self.y), (batch.x, batch.y))
        for (draw, repeat), noise in self.drawn.items():
            tree_map(Tensor.copy_, noise, super().noise(draw, repeat))


class GraphedStep(Step):
    """The same step for batches of the first one's shapes in one CUDA graph; others run eagerly.

    The graph holds masked pass, backward pass and optimisers, so that the host launches once per
    step. Noise is drawn outside, from the same keys, and learning rates are tensors (`adam`). On a
    CPU the same code runs and is not captured.
    """

    graph: Any = None

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.batch: Standing | None = None
        self.steps, self.found = 0, Loss({}, {})

    def __call__(self, batch_pass: BatchPass) -> Loss:
        if self.batch is None:
            self.batch = Standing(batch_pass)
        here, there = (self.batch.x, self.batch.y), (batch_pass.x, batch_pass.y)
        if rows(here) != rows(there) or not alike(here, there):
            return super().__call__(batch_pass)
        self.batch.take(batch_pass)
        if self.device.type != "cuda":
            return super().__call__(self.batch)
        if self.graph is None:
            self.steps += 1
            if self.steps <= WARM_UP:  # on a stream of its own
                stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    found = super().__call__(self.batch)
                main.wait_stream(stream)
                return found
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and runs nothing
                self.found = super().__call__(self.batch)
        self.graph.replay()
        return self.found
