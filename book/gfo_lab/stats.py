"""Intervals and tests over seeds and over splits of records."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy


def error(values: np.ndarray, share: float = 0.0) -> float:
    """Standard error of the mean of `values`.

    Args:
        values: (n,), two or more.
        share: 0 if they are independent, else test examples per training example of the splits that
            they come from (`corrected_resampled_interval`).
    """
    return float(np.std(values, ddof=1) * np.sqrt(1 / len(values) + share))


def interval(
    values: np.ndarray, confidence: float = 0.95, share: float = 0.0
) -> tuple[float, float]:
    """Student's t interval of the mean of `values`; infinite for n < 2.

    Args:
        values: (n,).
        confidence: Of the interval.
        share: See `error`.
    """
    n = len(values)
    if n < 2:
        return -np.inf, np.inf
    half = scipy.stats.t.ppf((1 + confidence) / 2, n - 1) * error(values, share)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def shared(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of the seeds that every method in them has.

    So means over seeds compare like with like; none where that is one seed or less.

    Args:
        frame: Records as `gfo_lab.records.read` gives them.
    """
    if frame.empty:
        return frame
    methods: Any = frame.groupby("seed")["method"].nunique()
    seeds = methods.index[methods == frame["method"].nunique()]
    return frame.loc[frame["seed"].isin(seeds if len(seeds) > 1 else [])]


def paired_by_seed(frame: pd.DataFrame, metric: str, reference: str = "random") -> pd.DataFrame:
    """Each method's `metric` minus that of `reference`, seed by seed.

    Args:
        frame: Records as `gfo_lab.records.read` gives them, of one data set and profile, one record
            per method and seed.
        metric: A column.
        reference: The method that others are held against.

    Returns:
        One row per method with n, difference, half, low and high: a 95 % t interval, difference ±
        half, not corrected for the number of rows.

    Raises:
        ValueError: Where a (method, seed) has two records.
    """
    if frame.duplicated(["method", "seed"]).any():
        raise ValueError("two records of one method and seed: select one configuration first")
    wide = frame.pivot(index="seed", columns="method", values=metric)
    rows, columns = {}, ["n", "difference", "half", "low", "high"]
    for method in wide.columns.drop(reference) if reference in wide else ():
        gap = (wide[method] - wide[reference]).dropna().to_numpy(float)
        if len(gap):
            low, high = interval(gap)
            rows[method] = [len(gap), gap.mean(), (high - low) / 2, low, high]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=float)


def holm(gaps: pd.DataFrame, alpha: float = 0.05, planned: int = 0) -> pd.DataFrame:
    """Intervals of several differences, widened so that all tests of zero together are wrong with
    probability `alpha` at most (Holm, 1979).

    The m differences are taken in the order of their p-values. The k-th is held at confidence
    1 − alpha / (m − k + 1), until one has zero inside; that one's confidence then serves the rest.

    Args:
        gaps: As `paired_by_seed` gives them, each of two seeds or more.
        alpha: 1 − confidence of all tests together, and of each interval in `gaps`.
        planned: m, where some of the differences are not measured yet: they count as undecided, so
            that what is decided stays so when they come.

    Returns:
        `gaps` with the wider half, low and high.
    """
    usual = scipy.stats.t.ppf(1 - alpha / 2, gaps["n"] - 1)
    p = 2 * scipy.stats.t.sf(usual * gaps["difference"].abs() / gaps["half"], gaps["n"] - 1)
    order, steps = np.argsort(p), alpha / np.arange(max(planned, len(p)), 0, -1)[: len(p)]
    stop = np.argmax(np.append(p[order] > steps, True))
    steps[stop + 1 :] = steps[stop : stop + 1]
    reach = scipy.stats.t.ppf(1 - steps[np.argsort(order)] / 2, gaps["n"] - 1)
    half, centre = gaps["half"] * reach / usual, gaps["difference"]
    return gaps.assign(half=half, low=centre - half, high=centre + half)


def spread(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half the width of `interval`) of the values that are there.

    As "mean ± half" says it; (nan, nan) for none, an infinite half for one.
    """
    there = np.array([v for v in values if not pd.isna(v)], dtype=float)
    if not len(there):
        return np.nan, np.nan
    low, high = interval(there, confidence)
    return float(there.mean()), (high - low) / 2


class Interval(NamedTuple):
    """Mean of the differences, its corrected standard error, and the ends of the interval."""

    mean: float
    error: float
    low: float
    high: float


def corrected_resampled_interval(
    differences: np.ndarray, share: float, confidence: float = 0.95
) -> Interval:
    """The corrected resampled t-interval (Nadeau & Bengio, 2003) of paired differences.

    Splits that reuse examples are no independent draws: the variance of the mean is
    (1/J + share) S², not S²/J.

    Args:
        differences: (J,), one per random split.
        share: Test examples per training example.
        confidence: Of the interval.

    Raises:
        ValueError: For less than two differences.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or len(d) < 2:
        raise ValueError(f"differences have shape {d.shape}, need one per split, two or more")
    return Interval(float(d.mean()), error(d, share), *map(float, interval(d, confidence, share)))


def detectable(
    standard_error: float, splits: int, share: float, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The smallest true difference that such an interval tells from 0.

    If the differences are normal and independent from split to split, as those between two
    trainings of one method are. The mean of independent differences varies by the plain error only,
    `standard_error` / √(1 + J·share), so that mean over plain error has a noncentral t
    distribution, which has to exceed the half-width of the interval, likewise over the plain error.

    Args:
        standard_error: The corrected one.
        splits: J, how many there are.
        share: Test examples per training example.
        confidence: Of the interval.
        power: The probability with which it is told from 0.
    """
    stretch = np.sqrt(1 + splits * share)
    reach = scipy.stats.t.ppf((1 + confidence) / 2, splits - 1) * stretch
    tail = scipy.stats.nct.sf  # how often mean over error, shifted so far, lies beyond `reach`
    shift: Any = scipy.optimize.brentq(lambda s: tail(reach, splits - 1, s) - power, 0, 4 * reach)
    return float(shift * standard_error / stretch)


def clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean of values that depend on each other within groups.

    Those of one group may do so in any way, and groups are independent (the linearised ratio
    estimator).

    Args:
        values: (n,).
        groups: Which group each is of, (n,).

    Returns:
        The error; NaN for a single group.
    """
    sums = pd.Series(values - values.mean()).groupby(groups, dropna=False).sum()
    count = len(sums)
    if count < 2:
        return float("nan")
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
