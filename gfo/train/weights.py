"""Networks with drawn weights, and SWAG, which draws them.

A posterior over weights answers as a `gfo.Ensemble` of networks drawn from it, so that
`gfo.predict`, `gfo.sample_logits` and what is built on them read it as they read masks.
"""

import copy

import torch

from gfo.core.attached import Attached
from gfo.core.checks import check_whole
from gfo.core.ensemble import Ensemble
from gfo.core.noise import generator
from gfo.train.batchnorm import reestimate


def with_weights(net: Attached, weights: torch.Tensor, part: str = "") -> Attached:
    """A copy of a network with other weights; those that stay it shares with the original.

    So the last-layer Laplace of laplace-torch (the extra `laplace`; MacKay, 1992; Daxberger et al.,
    2021), of a network without masks whose last layer is "model.out", is::

        fitted = laplace.Laplace(net, "classification", "last_layer", "full")
        fitted.fit(loader)
        fitted.optimize_prior_precision(method="marglik")
        drawn = fitted.sample(20)
        net = gfo.Ensemble([gfo.train.with_weights(net, w, "model.out") for w in drawn])

    Args:
        net: What `attach` returned.
        weights: (P,), in the order of the part's `parameters()`.
        part: The module that they belong to; the whole network by default.

    Raises:
        ValueError: Where the part has another number of weights.
        AttributeError: Where there is no such part.
    """
    own = {id(p): p for p in net.get_submodule(part).parameters()}
    sizes = [p.numel() for p in own.values()]
    if (size := sum(sizes)) != len(weights):
        raise ValueError(f"{len(weights)} weights for a part that has {size}: see part={part!r}")
    twin = copy.deepcopy(net, {id(p): p for p in net.parameters() if id(p) not in own})
    # each keeps its number format, its device and its order in memory
    for p, drawn in zip(twin.get_submodule(part).parameters(), weights.split(sizes), strict=True):
        p.data.copy_(drawn.view_as(p))
    return twin


class Swag:
    """SWAG (Maddox et al., 2019): a Gaussian over weights from the iterates of SGD::

        swag = gfo.train.Swag(net)
        for epoch in range(20):  # at a constant rate, high enough to move
            ...                  # an epoch of SGD
            swag.collect()
        gfo.predict(swag.ensemble(x_train, samples=20), x)

    The mean is that of the iterates. The covariance is half their variance, weight by weight, plus
    half of Σ d dᵀ / (K − 1), where d is the deviation of each of the last K iterates from the mean
    as it then stood (Algorithm 1 of the paper). K is at most `rank`; the authors' code divides by
    rank − 1 also while there are fewer.

    Args:
        net: What `attach` returned. All its parameters count, also those of masks and likelihood.
        rank: How many deviations are kept, at least 2; ValueError for less.

    Attributes:
        count: How many iterates were collected.
        mean: Of the iterates, (P,), on the CPU, in the order of `net.parameters()`.
        squares: Their summed squared deviations from the mean, (P,): count times the variance.
        deviations: Up to `rank` of (P,); that of the first iterate of all is zero.
    """

    def __init__(self, net: Attached, rank: int = 20):
        self.net, self.rank, self.count = net, check_whole("rank", rank, 2), 0
        self.mean, self.squares, self.deviations = torch.zeros(()), torch.zeros(()), []

    def collect(self, *_) -> None:
        """Take the weights as they now stand; what a callback is given is not read."""
        # not torch's parameters_to_vector, which takes no weights in channels_last
        now = torch.cat([p.detach().flatten().cpu() for p in self.net.parameters()])
        ahead = now - self.mean
        self.count += 1
        self.mean = self.mean + ahead / self.count
        self.deviations = [*self.deviations, ahead - ahead / self.count][-self.rank :]
        # Welford's sum: the mean of squares minus the square of the mean cancels in float32
        self.squares = self.squares + ahead * self.deviations[-1]

    def draw(self, seed: int = 0, number: int = 0) -> torch.Tensor:
        """Weights (P,) from the Gaussian, `number` of those that `seed` gives.

        Raises:
            ValueError: Before two iterates are collected.
        """
        if (rank := len(self.deviations)) < 2:
            raise ValueError(f"{rank} deviation(s), SWAG needs 2: call collect() more")
        gen = generator(seed, "swag", number)
        low_rank = torch.randn(rank, generator=gen) @ torch.stack(self.deviations)
        diagonal = (self.squares / self.count).sqrt() * torch.randn(len(self.mean), generator=gen)
        return self.mean + (diagonal + low_rank / (rank - 1) ** 0.5) / 2**0.5

    def ensemble(self, x: torch.Tensor, samples: int = 20, *, seed: int = 0, **how) -> Ensemble:
        """`samples` networks with drawn weights.

        Args:
            x: Training inputs, under which each takes its BatchNorm statistics anew.
            samples: How many.
            seed: Of the weights.
            **how: Further arguments of `gfo.train.reestimate`.
        """
        nets = [with_weights(self.net, self.draw(seed, k)) for k in range(samples)]
        for net in nets:
            reestimate(net, x, seed=seed, **how)
        return Ensemble(nets)
