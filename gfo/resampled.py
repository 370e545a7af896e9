"""What repeated random splits of one data set can tell: intervals that know they share examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from .compare import error, interval


class Interval(NamedTuple):
    """Mean of the differences, its corrected standard error, and the ends of the interval."""

    mean: float
    error: float
    low: float
    high: float


def paired(differences: np.ndarray, share: float, confidence: float = 0.95) -> Interval:
    """The corrected resampled t-interval (Nadeau & Bengio, 2003) of paired differences (J,), one a
    random split. share: test examples per training example. Splits that reuse examples are no
    independent draws: the variance of the mean is (1/J + share) S², not S²/J."""
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"differences have shape {d.shape}, need one a split, two or more")
    return Interval(float(d.mean()), error(d, share), *map(float, interval(d, confidence, share)))


def detectable(
    standard_error: float, splits: int, share: float, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The smallest true difference that such an interval tells from 0 with probability `power`, if
    the differences are normal and independent from split to split, as those between two trainings
    of one method are.

    standard_error: the corrected one. The mean of independent differences varies by the plain one
    only, `standard_error` / √(1 + J·share), so that mean over plain error has a noncentral t
    distribution, which has to exceed the half-width of the interval in the same units."""
    stretch = np.sqrt(1 + splits * share)
    reach = stats.t.ppf((1 + confidence) / 2, splits - 1) * stretch

    def lacking(shift: float) -> float:
        return stats.nct.sf(reach, splits - 1, shift) - power

    return float(optimize.brentq(lacking, 0, 4 * reach) * standard_error / stretch)
