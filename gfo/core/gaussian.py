"""Regression: real y, normal under each mask, so that the predictive is a mixture of normals."""

import math
from collections.abc import Iterable

import torch
import torch.distributions as td
from torch import Tensor, nn

from gfo.core.likelihood import Likelihood, per_example, wide


class Gaussian(Likelihood):
    """Real y (B, D), normal and independent under one mask.

    Args:
        sd: "network": outputs (B, 2D), D means, then the logs of D standard deviations. "learned":
            outputs (B, D) are the means; one standard deviation per target, the same for every
            input, is learned with the backbone, from that of the training y on. Positions may
            follow, (B, 2D, …) and (B, D, …).

    Raises:
        ValueError: For another `sd`, and at `attach` for an odd number of outputs to halve.
    """

    real = True

    def __init__(self, sd: str = "network"):
        super().__init__()
        if sd not in ("network", "learned"):
            raise ValueError(f"sd is {sd!r}, needs to be 'network' or 'learned'")
        self.sd = sd

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.sd == 'network' else f'sd={self.sd!r}'})"

    def build(self, outputs: tuple[int, ...]) -> None:
        if self.sd == "network" and outputs[0] % 2:
            cure = "double them, or learn one sd per target, gfo.Gaussian(sd='learned')"
            raise ValueError(f"the network has {outputs[0]} outputs, no means and log sds: {cure}")
        super().build(outputs)
        if self.sd == "learned":
            self.log_sd = nn.Parameter(torch.zeros(outputs[0]))

    def targets(self, channels: int) -> int:
        return channels if self.sd == "learned" else channels // 2

    def moments(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log sd), each (B, D, …)."""
        outputs = wide(outputs)
        if self.sd == "network":
            mean, log_sd = outputs.chunk(2, 1)
            return mean, log_sd
        log_sd = self.log_sd.to(outputs).view(-1, *[1] * (outputs.dim() - 2))
        return outputs, log_sd.expand_as(outputs)

    def distribution(self, outputs: Tensor) -> td.Distribution:
        mean, log_sd = self.moments(outputs)
        sd = log_sd.exp().clamp_min(torch.finfo(mean.dtype).tiny)  # one of no width is no normal
        return td.Independent(td.Normal(mean, sd), outputs.dim() - 1)

    def expected(self, outputs: Tensor) -> Tensor:
        return self.moments(outputs)[0]

    def log_lik(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log N(y; mean, sd²) summed over targets, shape (B,), in nats."""
        mean, log_sd = self.moments(outputs)
        z = (y - mean) * (-log_sd).exp()
        return -per_example(z.square() / 2 + log_sd + math.log(2 * math.pi) / 2).to(mean.dtype)

    @torch.no_grad()
    def standardise(self, ys: Iterable[Tensor]) -> None:
        fresh = not self.y_seen
        super().standardise(ys)
        if fresh and self.sd == "learned":
            self.log_sd.copy_(self.y_sd.log())
