"""Correlations by row."""

import pandas as pd
import torch
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row; 0 where a row is constant: it ranks nothing.

    Differences below 1e-9 are rounding.

    Args:
        a: (P, n).
        b: (P, n).

    Returns:
        (P,).
    """
    a, b = (t - t.mean(1, keepdim=True) for t in (a, b))
    norm = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(norm > 1e-9, (a * b).sum(1) / norm.clamp_min(1e-9), 0.0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of each row.

    Tied values share their mean rank, and differences below 1e-6 nat, float32's rounding, are ties.

    Args:
        a: (P, n).
        b: (P, n).

    Returns:
        (P,).
    """
    ranks = (pd.DataFrame(t.numpy().round(6)).rank(axis=1).to_numpy() for t in (a, b))
    return pearson(*(torch.tensor(r) for r in ranks))
