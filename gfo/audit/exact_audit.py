"""The truth test: a network's masks against the posterior they claim, over every mask there is."""

import math
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gfo.audit import exact
from gfo.core.attached import Attached
from gfo.core.batch import row_slice, rows, to_device, tree_map
from gfo.core.checks import check_batch
from gfo.core.noise import generator
from gfo.evaluate.stats import pearson, spearman


class Truth(NamedTuple):
    """All masks in `exact.all_masks` order.

    P is the number of points with a posterior of their own: one per example, or 1 where there is
    one for the data set.

    Attributes:
        log_q: (P, 2^M).
        log_reward: (P, 2^M).
        log_z: (P,), None for a method without one.
    """

    log_q: Tensor
    log_reward: Tensor
    log_z: Tensor | None


def truth(net: Attached, x: Any, y: Tensor) -> Truth:
    """Enumerate q and its target, in nats, float64.

    What the target is says the method: p(z|x,y) ∝ R for GFlowOut, p(z|D) for ID-GFlowOut, (x, y)
    being D, p(z|x,y) under its own prior for contextual dropout. Random and concrete dropout have
    no such target: their masks are held against p(z|x,y) under prior 0.5, not their own objective.

    Raises:
        ValueError: For more than 16 mask bits, tokens, bad x or y, and for a network without a
            distribution over masks.
    """
    x, y = check_batch(net, x, y)
    if net.method.q is None and net.method.p is None:
        raise ValueError(f"{net.method.name} has no distribution over masks: nothing to audit")
    log_q, log_p, log_z, log_lik = tree_map(Tensor.double, exact.score_all(net, x, y))
    if not net.method.own_posterior:
        log_q = log_p if log_q is None else log_q
        log_p = torch.full_like(log_lik, -math.log(log_lik.shape[1]))
        return Truth(log_q, log_lik + log_p, None)
    log_reward = net.method.log_reward(log_lik, log_p, rows(x))
    log_z = None if log_z is None else log_z[:, 0]  # the same for every mask
    found = Truth(log_q, log_reward, log_z)
    return row_slice(found, 0, 1) if net.method.shared else found


def audit_masks(
    net: Attached, x: Any, y: Tensor, *, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Exact figures of a net with at most 16 mask bits.

    What the posterior is: see `gfo.audit.exact_audit.truth`.

    Args:
        net: The network.
        x: A batch.
        y: Its labels.
        draws: How many masks the sampled figures count.
        seed: Of these masks.

    Returns:
        One row per example (one in all for a method whose posterior is the data set's); nats where
        not said. tv, total variation of q and the posterior. kl, kl_reverse, KL(q ‖ posterior),
        KL(posterior ‖ q). log_z_error, ``|log Z − log evidence|``. var_log_w, variance of log R −
        log q under q, nat². spearman, pearson, of log q and log R over all masks. tv_sampled,
        spearman_sampled, the same from `draws` masks of q counted; tv_floor, spearman_floor, from
        as many of the posterior itself, which is what a perfect q would show. log_evidence, the
        posterior's.

    Raises:
        ValueError: Above 16 mask bits, on bad x or y, and for a method that draws no masks.
    """
    return figures(*truth(net, x, y), draws=draws, seed=seed)


def figures(
    log_q: Tensor, log_reward: Tensor, log_z: Tensor | None, *, draws: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """`audit_masks` of given tables, from enumeration or from `layerwise_optimum`.

    Args:
        log_q: (P, 2^M).
        log_reward: (P, 2^M).
        log_z: (P,). Where it is None its place takes E_q[log R − log q], which is what VarGrad
            implies.
        draws: As in `audit_masks`.
        seed: As in `audit_masks`.
    """
    log_q, log_reward, log_z = to_device((log_q, log_reward, log_z), "cpu")
    evidence = log_reward.logsumexp(1)
    log_post = log_reward - evidence[:, None]
    log_w, q = log_reward - log_q, log_q.exp()
    mean_log_w = (q * log_w).sum(1)
    gen = generator(seed, "draws")
    counted, floor = (frequencies(log_p.exp(), draws, gen) for log_p in (log_q, log_post))
    columns = {
        "tv": exact.total_variation(log_q, log_post),
        "kl": exact.kl(log_q, log_post),
        "kl_reverse": exact.kl(log_post, log_q),
        "log_z_error": ((mean_log_w if log_z is None else log_z) - evidence).abs(),
        "var_log_w": (q * (log_w - mean_log_w[:, None]).square()).sum(1),
        "spearman": spearman(log_q, log_reward),
        "pearson": pearson(log_q, log_reward),
        "tv_sampled": exact.total_variation(counted.log(), log_post),
        "tv_floor": exact.total_variation(floor.log(), log_post),
        "spearman_sampled": spearman(counted, log_reward),
        "spearman_floor": spearman(floor, log_reward),
        "log_evidence": evidence,
    }
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def frequencies(prob: Tensor, draws: int, gen: torch.Generator) -> Tensor:
    """How often each mask came up in `draws` draws, (P, 2^M) -> (P, 2^M)."""
    index = torch.multinomial(prob, draws, replacement=True, generator=gen)
    counts = torch.zeros_like(prob).scatter_add_(1, index, torch.ones_like(index, dtype=prob.dtype))
    return counts / draws
