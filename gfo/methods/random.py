"""Random dropout: independent Bernoulli masks, kept on at test time (MC dropout)."""

from __future__ import annotations

from ..policies import FixedPolicy
from ..registry import METHODS
from .base import Loss, Method, check_keep


@METHODS.register("random")
class RandomDropout(Method):
    """Standard Bernoulli dropout with masks sampled at test time too (Gal & Ghahramani, 2016).

    keep: probability that a unit is kept. No q, no log Z: `score` returns None for both.
    """

    name = "random"

    def __init__(self, *, keep: float = 0.5, rescale: bool = False):
        super().__init__(rescale=rescale, keep=check_keep(keep))
        self.keep = keep
        del self.config["temperature"], self.config["random"]

    def make(self, spec):
        self.p = FixedPolicy(spec.sites, self.keep)

    def loss(self, run, n):
        out = run(source="train")
        return Loss({"nll": -out.log_lik.mean()}, {})
