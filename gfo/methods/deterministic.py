"""No dropout: the network as it is, the floor of every comparison."""

from __future__ import annotations

from ..registry import METHODS
from .base import Loss, Method


@METHODS.register("deterministic")
class Deterministic(Method):
    """Every mask is ones, so one pass predicts, however many `samples` are asked for. There is no
    distribution over masks: of `score` only log p(y | x, z) is not None."""

    name = "deterministic"
    stochastic = False
    shared = True  # one row of ones serves the batch

    def __init__(self):
        super().__init__()
        self.config = {}

    def make(self, spec):
        """Nothing to make."""

    def visit(self, layer, context, mask, units, explore, source):
        ones = context.h.new_ones(1, *context.h.shape[1:])
        return (ones if mask is None else mask), None, None

    def loss(self, run, n):
        return Loss({"nll": -run(source="train").log_lik.mean()}, {})
