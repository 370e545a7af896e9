"""Paired differences between methods over shared seeds."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.stats import t


def error(values: np.ndarray, share: float = 0.0) -> float:
    """Standard error of the mean of `values` (n,), two or more. share: 0 if they are independent,
    else test examples per training example of the splits that they come from (`gfo.resampled`)."""
    return float(np.std(values, ddof=1) * np.sqrt(1 / len(values) + share))


def interval(
    values: np.ndarray, confidence: float = 0.95, share: float = 0.0
) -> tuple[float, float]:
    """Student's t interval of the mean of `values` (n,); infinite for n < 2. share: see `error`."""
    n = len(values)
    if n < 2:
        return -np.inf, np.inf
    half = t.ppf((1 + confidence) / 2, n - 1) * error(values, share)
    return np.mean(values) - half, np.mean(values) + half


def shared(frame: pd.DataFrame) -> pd.DataFrame:
    """The records, as `records.read` gives them, of the seeds that every method in them has, so
    that means over seeds compare like with like; none where that is one seed or less."""
    if frame.empty:
        return frame
    methods = frame.groupby("seed")["method"].nunique()
    seeds = methods.index[methods == frame["method"].nunique()]
    return frame[frame["seed"].isin(seeds if len(seeds) > 1 else [])]


def why_none(found: pd.DataFrame) -> str:
    """What a page says where `shared` leaves nothing of the records `found`."""
    return f"{len(found)} runs so far, too few to compare" if len(found) else "not run here"


def paired(frame: pd.DataFrame, metric: str, reference: str = "random") -> pd.DataFrame:
    """Each method's `metric` minus that of `reference`, seed by seed: one row a method with n,
    difference, half, low, high: a 95 % t interval, difference ± half, not corrected for the number
    of rows.

    frame: records as `records.read` gives them, of one data set and profile, one record a method
    and seed. Raises ValueError where a (method, seed) has two.
    """
    if frame.duplicated(["method", "seed"]).any():
        raise ValueError("two records of one method and seed: select one configuration first")
    wide = frame.pivot(index="seed", columns="method", values=metric)
    rows, columns = {}, ["n", "difference", "half", "low", "high"]
    for method in wide.columns.drop(reference, errors="ignore"):
        if reference not in wide:
            break
        gap = (wide[method] - wide[reference]).dropna().to_numpy(float)
        if len(gap):
            low, high = interval(gap)
            rows[method] = [len(gap), gap.mean(), (high - low) / 2, low, high]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def spread(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half the width of `interval`) of the values that are there, as "mean ± half" says it;
    (nan, nan) for none, an infinite half for one."""
    there = np.array([v for v in values if not pd.isna(v)], dtype=float)
    if not len(there):
        return np.nan, np.nan
    low, high = interval(there, confidence)
    return float(there.mean()), (high - low) / 2
