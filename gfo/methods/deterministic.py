"""No dropout: one network, and a member of an ensemble of such."""

from __future__ import annotations

from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method


@METHODS.register("deterministic")
class Deterministic(Method):
    """Every mask is ones, so one pass predicts, however many `samples` are asked for. There is no
    distribution over masks: of `score` only log p(y | x, z) is not None."""

    name = "deterministic"
    stochastic = False
    shared = True  # one row of ones serves the batch

    def make(self, spec):
        """Nothing to make."""

    def mask_at_site(self, layer, context, mask, units, explore, source):
        ones = context.h.new_ones(1, *context.h.shape[1:])
        return (ones if mask is None else mask), None, None

    def loss(self, run, n):
        return Loss({"nll": -run(source="train").log_lik.mean()}, {})


@METHODS.register("ensemble")
class EnsembleMember(Deterministic):
    """A deep ensemble (Lakshminarayanan et al., 2017, without adversarial training), seen from one
    member: a deterministic network. An experiment trains `members` of them, each from a seed of its
    own, and joins them in a `gfo.Ensemble`: see `gfo_lab.experiments.training.train_members`."""

    name = "ensemble"
    members: int = 5

    def __post_init__(self):
        if self.members < 1:
            raise ValueError(f"members is {self.members}, needs to be at least 1")
        super().__post_init__()
