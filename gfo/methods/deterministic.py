"""No dropout: one network, and a member of an ensemble of such."""

from gfo.core.registry import METHODS
from gfo.methods.base import Method


@METHODS.register("deterministic")
class Deterministic(Method):
    """No dropout: every mask is ones.

    So one pass predicts, however many `samples` are asked for. There is no distribution over masks:
    of `score` only log p(y | x, z) is not None.
    """

    name = "deterministic"
    stochastic = False
    count = 1
    shared = True  # one row of ones serves the batch

    def mask_at_site(self, layer, context, mask, u, explore, source):
        ones = context.h.new_ones(1, *context.h.shape[1:])
        return (ones if mask is None else mask), None, None


@METHODS.register("ensemble")
class EnsembleMember(Deterministic):
    """A deep ensemble, seen from one member: a deterministic network.

    Lakshminarayanan et al., 2017, without adversarial training. An experiment trains `members` of
    them, each from a seed of its own, and joins them in a `gfo.Ensemble`: see
    `gfo_lab.experiments.training.train_members`.

    Args:
        members: How many.
    """

    name = "ensemble"
    members: int = 5
