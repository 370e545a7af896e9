"""Split-conformal sets and intervals: coverage promised for any network, however wrong it is.

A score says how badly y fits a prediction. Of n calibration examples, which the network was not
trained on, the k-th smallest score is the threshold, k = ⌈(n + 1)(1 − α)⌉, and the region of a new
example holds each y whose score is no larger. If it and the calibration examples are exchangeable,
its y lies inside with probability k / (n + 1) ≥ 1 − α (Vovk et al., 2005; Lei et al., 2018), more
where scores tie: on average over calibration sets and examples, not for each class or each x, and
not after a shift.

Own code, being a rank and a comparison: MAPIE and crepes wrap the estimators of scikit-learn.
"""

import math

import scipy
import torch
from torch import Tensor

from gfo.evaluate.metrics import check_classes


class Conformal:
    """What `Sets` and `Intervals` share.

    Attributes:
        threshold: The largest score that a region admits.
        promised: The expected coverage k / (n + 1), which is at least 1 − alpha.
        k: Rank of the threshold among the scores of calibration.
        n: How many of them there are.
    """

    def __init__(self, *seen: Tensor, alpha: float = 0.1):
        scores = self.score(*map(torch.as_tensor, seen))
        self.n = n = len(scores)
        if not 1 / (n + 1) <= alpha < 1:
            said = f"alpha={alpha!r} is not in [1 / {n + 1}, 1), all that {n} examples can promise"
            raise ValueError(f"{said}: raise alpha or calibrate on more examples")
        self.k = math.ceil(round((n + 1) * (1 - alpha), 9))  # 30 · 0.9 is 27, whatever floats say
        self.threshold, self.promised = float(scores.kthvalue(self.k).values), self.k / (n + 1)

    def score(self, *seen: Tensor) -> Tensor:
        """How badly y fits, (B,); the arguments are those of calibration."""
        raise NotImplementedError

    def coverage(self, *seen: Tensor) -> float:
        """The share of examples whose y is inside; the arguments are those of calibration."""
        return float((self.score(*map(torch.as_tensor, seen)) <= self.threshold).double().mean())

    def band(self, count: int, level: float = 0.95) -> tuple[float, float]:
        """Where `coverage` of `count` new examples lies with probability `level`, without ties.

        Over calibration sets the true coverage is Beta(k, n + 1 − k), so that the number of
        examples inside is beta-binomial; a binomial band would take the threshold for exact.
        """
        low, high = scipy.stats.betabinom(count, self.k, self.n + 1 - self.k).interval(level)
        return low / count, high / count


class Sets(Conformal):
    """Sets of classes that hold the label with probability 1 − alpha.

    The score is 1 − p(y | x), "least ambiguous" or LAC (Sadinle et al., 2019): the smallest sets on
    average where the probabilities are right, not randomised. They hold the label of easy examples
    more often than that of hard ones, which adaptive sets (APS; Romano et al., 2020) even out by
    larger sets. A set may be empty, where no class is likely enough.

    Call it on probabilities (B, K) for booleans (B, K), True inside.

    Args:
        probs: Of calibration examples, (B, K), as `gfo.predict` or a `Temperature` gives them;
            these examples serve nothing else, so that a temperature is fitted on others.
        y: Their labels, (B,).
        alpha: The share of examples that may lie outside.

    Raises:
        ValueError: For what are no class probabilities and labels, for an alpha outside (0, 1), and
            for fewer examples than 1 / alpha − 1, which bound nothing.
    """

    def score(self, probs: Tensor, y: Tensor) -> Tensor:
        check_classes(probs, y)
        return 1 - probs.gather(1, y[:, None].to(probs.device, torch.long)).squeeze(1)

    def __call__(self, probs: Tensor) -> Tensor:
        check_classes(probs, probs.argmax(1))
        return 1 - probs <= self.threshold


class Intervals(Conformal):
    """Intervals mean ± threshold · sd that hold y with probability 1 − alpha.

    The score is ``|y − mean| / sd``. Where an example has several targets it is the largest, and
    the intervals are sides of a box that holds all of them at once.

    Call it on means and sds, each (B, D), for lower and upper ends, each (B, D).

    Args:
        mean: Of calibration examples, (B, D), as `gfo.predictive(net, x).mean`.
        sd: Their predictive standard deviation, (B, D), as `.stddev`; ones give equal widths.
        y: (B, D).
        alpha: The share of examples that may lie outside.

    Raises:
        ValueError: For shapes that differ, an sd that is not above 0, numbers that are not finite,
            and as `Sets`.
    """

    def score(self, mean: Tensor, sd: Tensor, y: Tensor) -> Tensor:
        if mean.shape == sd.shape == y.shape and mean.dim() > 1:
            found = ((y - mean).abs() / sd).flatten(1).amax(1)
            if found.isfinite().all() and (sd > 0).all():
                return found
        got = f"{tuple(mean.shape)}, {tuple(sd.shape)}, {tuple(y.shape)}"
        raise ValueError(f"mean, sd, y: {got} need one shape (B, D), finite numbers and sd > 0")

    def __call__(self, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
        self.score(mean, sd, mean)  # which refuses others
        return mean - self.threshold * sd, mean + self.threshold * sd
