"""Where a layer-wise q ends with nothing in its way: a free logit for every unit, point and prefix
of earlier masks, no network, no sampling. The best it can do, and what tempered training aims at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import exact
from .noise import generator

Tables = list[Tensor]  # a layer: logits (..., 2^{earlier bits}, C_l)


def log_prob(tables: Tables, temperature: float = 1.0, random: float = 0.0) -> Tensor:
    """log-probability of all masks in `exact.all_masks` order, (..., 2^M); under the training
    policy for a temperature above 1 and random layers (`GFlowOut`)."""
    total = None
    for table in tables:
        logits, width = table / temperature, table.shape[-1]
        (masks,) = exact.all_masks([width])
        layer = logits @ masks.to(logits).T - F.softplus(logits).sum(-1, keepdim=True)
        if random:
            layer = torch.logaddexp(
                layer + math.log1p(-random), torch.tensor(math.log(random) - width * math.log(2))
            )
        total = layer if total is None else total.unsqueeze(-1) + layer
        total = total.flatten(-2)  # (..., 2^{earlier}, 2^C_l) -> (..., 2^{so far})
    return total


def best_layerwise(
    log_posterior: Tensor, widths: Sequence[int], *, restarts: int = 5, seed: int = 0
) -> tuple[Tensor, float]:
    """(log q (B, 2^M), spread): the layer-factorised q of least KL(q ‖ posterior) a point.

    Minimised directly from `restarts` random starts. spread: how far their KL differ, in nats, at
    the point where they differ most; near 0 there is one optimum and it was found.
    """
    gen = generator(seed, "restarts")
    tables, before = [], 1
    for width in widths:
        shape = (restarts, len(log_posterior), before, width)
        tables.append(torch.randn(shape, generator=gen, dtype=torch.float64))
        before *= 2**width
    _descend(tables, lambda: exact.kl(log_prob(tables), log_posterior).sum())
    log_q = log_prob(tables).detach()
    kl = exact.kl(log_q, log_posterior)  # (R, B)
    winner = kl.argmin(0)
    return log_q[winner, torch.arange(len(winner))], float((kl.amax(0) - kl.amin(0)).max())


def tempered_fixed_point(
    log_reward: Tensor, widths: Sequence[int], *, temperature: float = 2.0, random: float = 0.1
) -> tuple[Tensor, Tensor]:
    """(log q (B, 2^M), log Z (B,)) where trajectory balance comes to rest when masks are drawn from
    the training policy q~: E_q~[(log Z + log q − log R) ∇ log q] = 0, q~ not differentiated.

    With q~ = q this is `best_layerwise`. Where no q fits, the squared residual is least under
    another distribution, and so at another q.
    """
    before = [2 ** sum(widths[:layer]) for layer in range(len(widths))]
    tables = [
        torch.zeros(len(log_reward), n, width, dtype=torch.float64)
        for n, width in zip(before, widths, strict=True)
    ]

    def weight() -> Tensor:
        return log_prob(tables, temperature, random).exp().detach()

    def log_z() -> Tensor:  # the log Z that is best for this q: the mean of log R − log q
        return (weight() * (log_reward - log_prob(tables))).sum(-1, keepdim=True).detach()

    def loss() -> Tensor:
        residual = log_z() + log_prob(tables) - log_reward
        return (weight() * residual.square()).sum()

    _descend(tables, loss)
    return log_prob(tables).detach(), log_z().squeeze(-1)


def _descend(tables: Tables, loss: Callable[[], Tensor], steps: int = 300) -> None:
    """Adam with a cosine schedule: enough here for restarts to agree within 1e-6 nat."""
    optimizer = torch.optim.Adam([table.requires_grad_() for table in tables], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
