"""What repeated random splits of one data set can tell: intervals that know they share examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """Mean of the differences, its corrected standard error, and the ends of the interval."""

    mean: float
    error: float
    low: float
    high: float


def paired(differences: np.ndarray, share: float, level: float = 0.95) -> Interval:
    """The corrected resampled t-interval (Nadeau & Bengio, 2003) of paired differences (J,), one a
    random split. share: test examples per training example. Splits that reuse examples are no
    independent draws: the variance of the mean is (1/J + share) S², not S²/J."""
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"differences have shape {d.shape}, need one a split, two or more")
    error = float(d.std(ddof=1) * np.sqrt(1 / len(d) + share))
    reach = float(stats.t.ppf(0.5 + level / 2, len(d) - 1)) * error
    return Interval(float(d.mean()), error, float(d.mean()) - reach, float(d.mean()) + reach)


def detectable(error: float, splits: int, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that such an interval tells from 0 with probability `power`, if
    the standard error is `error`."""
    return float(stats.t.ppf([0.5 + level / 2, power], splits - 1).sum()) * error
