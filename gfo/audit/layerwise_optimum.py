"""Where a layer-wise q ends with nothing in its way.

A free logit for every bit, point and prefix of earlier masks, no network, no sampling. The best
it can do, and what tempered training aims at.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.audit import exact
from gfo.core.noise import generator

MEMORY = 2**18  # masks × points at a time

Tables = list[Tensor]  # per layer: logits (..., 2^{earlier bits}, C_l)


def log_prob(tables: Tables, temperature: float = 1.0, random: float = 0.0) -> Tensor:
    """log-probability of all masks in `exact.all_masks` order.

    Under the training policy for a temperature above 1 and random layers (`GFlowOut`).

    Args:
        tables: A tensor of logits per layer, (..., 2^{earlier bits}, C_l).
        temperature: That the logits are divided by.
        random: Share of layers that take random masks.

    Returns:
        (..., 2^M), in nats.
    """
    found = tables[0].new_zeros(tables[0].shape[:-1])  # (..., 1)
    for table in tables:
        logits, width = table / temperature, table.shape[-1]
        (masks,) = exact.all_masks([width])
        layer = logits @ masks.to(logits).T - F.softplus(logits).sum(-1, keepdim=True)
        if random:
            policy, coins = torch.tensor([1 - random, random]).to(layer).log()  # −inf at an end
            layer = torch.logaddexp(layer + policy, coins - width * math.log(2))
        found = (found.unsqueeze(-1) + layer).flatten(-2)  # -> (..., 2^{so far})
    return found


def best_layerwise(
    log_reward: Tensor, widths: Sequence[int], *, restarts: int = 5, seed: int = 0
) -> tuple[Tensor, float]:
    """The layer-factorised q of least KL(q ‖ posterior) for each point.

    Minimised directly from random starts.

    Args:
        log_reward: (B, 2^M); the posterior is R normalised.
        widths: Bits of each layer.
        restarts: How many starts.
        seed: Of the starts.

    Returns:
        log q (B, 2^M), and how far the KL of the restarts differ, in nats, at the point where they
        differ most; near 0 there is one optimum and it was found.
    """
    gen = generator(seed, "restarts")
    log_posterior = log_reward - log_reward.logsumexp(1, keepdim=True)
    found, spread = [], 0.0
    for part in log_posterior.split(max(1, MEMORY // log_posterior.shape[1])):
        tables = _tables((restarts, len(part)), widths)
        for table in tables:
            table.normal_(generator=gen)
        _descend(tables, lambda tables=tables, part=part: exact.kl(log_prob(tables), part).sum())
        log_q = log_prob(tables).detach()
        kl = exact.kl(log_q, part)  # (R, b)
        found.append(log_q[kl.argmin(0), torch.arange(len(part))])
        spread = max(spread, float((kl.amax(0) - kl.amin(0)).max()))
    return torch.cat(found), spread


def forward_layerwise(log_reward: Tensor, widths: Sequence[int]) -> Tensor:
    """The layer-factorised q of least KL(posterior ‖ q) for each point, in closed form.

    Each bit has the posterior's own probability given the earlier layers. One layer of all bits
    gives the best mean-field q, which has the posterior's marginals; layers of one bit give the
    posterior itself.

    Args:
        log_reward: (B, 2^M); the posterior is R normalised.
        widths: Bits of each layer.

    Returns:
        log q (B, 2^M).
    """
    prob, tables, done = log_reward.softmax(1), [], 0
    for width in widths:
        joint = prob.view(len(prob), 2**done, 2**width, -1).sum(3)  # (B, prefix, layer)
        (masks,) = exact.all_masks([width])
        keep = joint @ masks.to(joint) / joint.sum(2, keepdim=True)
        tables.append(keep.logit(1e-12))  # a finite logit for a bit that is certain
        done += width
    return log_prob(tables)


def tempered_fixed_point(
    log_reward: Tensor, widths: Sequence[int], *, temperature: float = 2.0, random: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Where trajectory balance comes to rest when masks are drawn from the training policy q~.

    E_q~[(log Z + log q − log R) ∇ log q] = 0, q~ not differentiated. With q~ = q this is
    `best_layerwise`. Where no q fits, the squared residual is least under another distribution, and
    so at another q.

    Args:
        log_reward: (B, 2^M).
        widths: Bits of each layer.
        temperature: Of q~.
        random: Share of layers that take random masks under q~.

    Returns:
        log q (B, 2^M) and log Z (B,).
    """
    tables = _tables((len(log_reward),), widths)

    def weight() -> Tensor:
        return log_prob(tables, temperature, random).exp().detach()

    def log_z() -> Tensor:  # the log Z that is best for this q: the mean of log R − log q
        return (weight() * (log_reward - log_prob(tables))).sum(-1, keepdim=True).detach()

    def loss() -> Tensor:
        return (weight() * (log_z() + log_prob(tables) - log_reward).square()).sum()

    _descend(tables, loss)
    return log_prob(tables).detach(), log_z().squeeze(-1)


def _tables(lead: tuple[int, ...], widths: Sequence[int]) -> Tables:
    """Logits of zero for every prefix, ``(*lead, 2^{earlier bits}, C_l)`` per layer."""
    shapes = ((2 ** sum(widths[:layer]), width) for layer, width in enumerate(widths))
    return [torch.zeros(*lead, *shape, dtype=torch.float64) for shape in shapes]


def _descend(tables: Tables, loss: Callable[[], Tensor]) -> None:
    """Adam, of which 200 steps let restarts on the book's toys agree within 1e-5 nat."""
    optimizer = torch.optim.Adam([table.requires_grad_() for table in tables], lr=0.2)
    descend(optimizer, 200, lambda step: loss())


def descend(optimizer: torch.optim.Optimizer, steps: int, loss: Callable[[int], Tensor]) -> None:
    """Steps of an optimiser down `loss(step)`, its rates falling along a cosine."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()
