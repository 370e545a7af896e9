"""Intervals and tests over seeds and over splits; correlations by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import optimize, stats
from scipy.stats import t
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row of (P, n) tensors, (P,); 0 where a row is constant: it ranks nothing.
    Differences below 1e-9 are rounding."""
    a, b = (t - t.mean(1, keepdim=True) for t in (a, b))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-9, (a * b).sum(1) / norm.clamp_min(1e-9), 0.0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each row, (P,); tied values share their mean rank, and differences below
    1e-6 nat, float32's rounding, are ties."""
    ranks = (pd.DataFrame(t.numpy().round(6)).rank(axis=1).to_numpy() for t in (a, b))
    return pearson(*(torch.tensor(r) for r in ranks))


def error(values: np.ndarray, share: float = 0.0) -> float:
    """Standard error of the mean of `values` (n,), two or more. share: 0 if they are independent,
    else test examples per training example of the splits that they come from (`corrected_resampled_interval`)."""
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


def paired_by_seed(frame: pd.DataFrame, metric: str, reference: str = "random") -> pd.DataFrame:
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


class Interval(NamedTuple):
    """Mean of the differences, its corrected standard error, and the ends of the interval."""

    mean: float
    error: float
    low: float
    high: float


def corrected_resampled_interval(
    differences: np.ndarray, share: float, confidence: float = 0.95
) -> Interval:
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
