"""The predictive distribution: the mixture over masks of what the likelihood says under each."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import as_tensors
from gfo.core.checks import check_counts, check_net
from gfo.core.ensemble import Ensemble
from gfo.core.likelihood import Likelihood
from gfo.core.predict import sample_logits


class Predictive(torch.distributions.Distribution):
    """p(y | x) ≈ the mean over S masks of p(y | x, z), batch shape (B,).

    Of class labels, `mean` and `variance` are those of the one-hot label.

    Args:
        parts: Each a likelihood and the outputs (S, B, C, …) that it reads, of one network or of
            the members of an ensemble.
    """

    arg_constraints: dict[str, Any] = {}

    @torch.no_grad()
    def __init__(self, parts: Sequence[tuple[Likelihood, Tensor]]):
        self.parts = parts
        self.components = [lik.distribution(one) for lik, outputs in parts for one in outputs]
        one = self.components[0]
        super().__init__(one.batch_shape, one.event_shape, validate_args=False)

    def _each(self, name: str) -> Tensor:
        """(S, B, …): what each likelihood's method of that name says of each mask."""
        flat = [(getattr(lik, name)(out.flatten(0, 1)), out.shape[:2]) for lik, out in self.parts]
        return torch.cat([each.unflatten(0, shape) for each, shape in flat])

    @property
    @torch.no_grad()
    def mean(self) -> Tensor:
        return self._each("expected").mean(0)

    @property
    @torch.no_grad()
    def variance(self) -> Tensor:
        """What y itself varies under a mask, on average, and what the means vary over masks."""
        return self._each("variance").mean(0) + self._each("expected").var(0, correction=0)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(y | x) of y (B, …), shape (B,), in nats, jointly for all that y holds.

        Raises:
            ValueError: For y that the likelihood does not take, such as NaN or a class beyond K.
        """
        value, want = as_tensors(value), self.batch_shape + self.event_shape
        if value.shape[-len(want) :] != want:  # or y of one target would be spread over rows
            raise ValueError(f"y has shape {tuple(value.shape)}, needs {tuple(want)} at its end")
        (likelihood, outputs), many = self.parts[0], value.reshape(-1, *self.event_shape)
        likelihood.check(many, len(many), tuple(outputs.shape[2:]))
        return self.mixture(value)

    def mixture(self, value: Tensor) -> Tensor:
        """`log_prob` of a y that has been checked, a tensor."""
        each = torch.stack([one.log_prob(value) for one in self.components])
        return each.logsumexp(0) - math.log(len(each))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """y from a mask of its own each, ``(*sample_shape, B, …)``, by torch's global generator."""
        drawn = self.components[0].sample(sample_shape)
        lead = (*sample_shape, *self.batch_shape, *[1] * len(self.event_shape))
        which = torch.randint(len(self.components), lead, device=drawn.device)
        for index, one in enumerate(self.components[1:], 1):
            drawn = torch.where(which == index, one.sample(sample_shape), drawn)
        return drawn


def predictive(net: Attached, x: Any, samples: int = 20, **how) -> Predictive:
    """The predictive distribution of y, a mixture over masks.

    Its `mean` is `gfo.predict`; besides `variance`, `log_prob(y)` and `sample`.

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch.
        samples: How many masks.
        **how: As in `sample_logits`.

    Raises:
        ValueError: On bad x, samples < 1 or bad masks, and where the network answers NaN.
    """
    members = net.nets if isinstance(net, Ensemble) else [net]
    check_counts(samples=samples)
    check_net(members[0])
    # of a method that has so many masks each weighs the same, and so does each member
    every = len(members) * math.lcm(*(member.method.count or 1 for member in members))
    outputs = sample_logits(net, x, every * -(-samples // every), **how)
    return Predictive([(m.likelihood, outputs[k :: len(members)]) for k, m in enumerate(members)])
