"""Importance-weighted dropout: the likelihood's mean over masks, not its logarithm's."""

import math

from torch import Tensor

from gfo.core.registry import METHODS
from gfo.methods.base import Loss
from gfo.methods.random import RandomDropout


def log_mean(log_lik: Tensor) -> Tensor:
    """log (1/K) Σ_k exp(log_lik_k), (K, ...) -> (...)."""
    return log_lik.logsumexp(0) - math.log(len(log_lik))


@METHODS.register("iw-dropout")
class ImportanceWeightedDropout(RandomDropout):
    """Dropout trained on K masks per example as one mixture (Noh et al., 2017, IWSGD).

    Minimised is −log (1/K) Σ_k p(y | x, z_k) over masks of a fixed prior: an upper bound of
    −log p(y | x) that falls toward it as K grows, and plain dropout's loss at K = 1. In its
    gradient each mask weighs as its share of the likelihood. Prediction is that of random dropout;
    no q, no log Z.

    Args:
        keep: Probability that a unit is kept.
        rescale: As in `Method`.
        masks: K, masks per example and step, folded into the batch.
    """

    name = "iw-dropout"
    masks: int = 4
    hash_defaults = {}

    def loss(self, batch_pass, n):
        out = batch_pass(source="train", repeat=self.masks)
        return Loss({"nll": -log_mean(out.log_lik.unflatten(0, (self.masks, -1))).mean()}, {})
