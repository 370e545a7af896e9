"""Building blocks of the losses, all in nats, and the family of objectives that train q."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.core.registry import Registry

CERTAIN = 1e4  # the logit of a bit that is 1 whatever happens: its log-probability and its KL from
# another certain one are exactly 0 in float32, and it has no gradient


def log_bernoulli(logits: Tensor, mask: Tensor) -> Tensor:
    """log probability of a 0/1 mask under independent Bernoulli(σ(logits)), summed over its bits.

    logits, mask: (B, C) or (B, T, C), either may have B = 1. Returns (B,).
    z·a − softplus(a) equals z·log σ(a) + (1 − z)·log(1 − σ(a)) and never takes log 0.
    """
    logits = logits.float()
    return (mask * logits - F.softplus(logits)).flatten(1).sum(1)  # (B, ...) -> (B,)


def kl_bernoulli(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q_l ‖ p_l) of two layers of independent Bernoullis, closed form, shape (B,)."""
    a, b = q_logits.float(), p_logits.float()
    return (torch.sigmoid(a) * (a - b) + F.softplus(b) - F.softplus(a)).flatten(1).sum(1)


def tb_residual(log_z: Tensor, log_q: Tensor, log_reward: Tensor) -> Tensor:
    """log Z + log q(z) − log R(z), the bracket of eqs (5), (6) and (10); R is a target, so its
    gradient is stopped. Shapes broadcast to (B,). ValueError where there is no log Z."""
    if log_z is None:
        raise ValueError("trajectory balance needs log Z and this policy has none: use vargrad")
    return log_z + log_q - log_reward.detach()


def trajectory_balance(log_z: Tensor, log_q: Tensor, log_reward: Tensor) -> Tensor:
    """The squared residual of eq (5), (B,), in nats². The state graph is a tree, so P_B = 1."""
    return tb_residual(log_z, log_q, log_reward).square()


def log_partition_variance(log_q: Tensor, log_reward: Tensor) -> Tensor:
    """Var over K masks of log R − log q, (K, B) -> (B,), in nats² (VarGrad, Richter et al., 2020).

    It is trajectory balance with the mean of log R − log q over the example's own masks as log Z.
    The variance is the unbiased one, so that the on-policy gradient is exactly twice that of
    KL(q ‖ posterior), as trajectory balance's is.
    """
    return (log_reward.detach() - log_q).var(0)


def sub_trajectory_balance(log_flows: Tensor, log_q: Tensor, lam: float) -> Tensor:
    """SubTB(λ) (Madan et al., 2023), (L + 1, ...) and (L, ...) -> (...), in nats².

    log_flows: log F of the states z_≤0 … z_≤L; the first is log Z, the last log R. log_q: of each
    layer. The squared residual log F(s_i) + log q(s_i → s_j) − log F(s_j) of each pair i < j
    weighs λ^(j−i), normalised. λ = 0 is detailed balance, λ = inf trajectory balance.
    """
    layers = len(log_q)
    drawn = torch.cat([torch.zeros_like(log_q[:1]), log_q.cumsum(0)])
    i, j = torch.triu_indices(layers + 1, layers + 1, 1)
    potential = log_flows - drawn  # a residual is the difference of two potentials
    squares = (potential[i] - potential[j]).square()  # (pairs, ...)
    gap = (j - i - (1 if lam <= 1 else layers)).to(squares)  # the largest weight is 1
    weight = squares.new_tensor(float(lam)) ** gap
    return torch.tensordot(weight / weight.sum(), squares, 1)


def reverse_kl(log_q: Tensor, log_reward: Tensor) -> Tensor:
    """KL(q ‖ posterior) − log p(y | x) from K masks of q itself, (K, B) -> (B,), in nats.

    The value is the mean of log q − log R, minus the ELBO. The gradient is REINFORCE with the
    leave-one-out baseline (Kool et al., 2019), unbiased.
    """
    cost = (log_q - log_reward).detach()
    count = len(cost)
    advantage = (cost - cost.mean(0)) * count / (count - 1)  # cost − mean of the others
    surrogate = (advantage * log_q).mean(0)
    return cost.mean(0) + surrogate - surrogate.detach()


class Terms(NamedTuple):
    """What an objective compares, for K masks an example. Lists have one entry a layer."""

    log_z: Tensor | None  # (K, B)
    log_q: list[Tensor]  # (K, B) each
    log_flows: list[Tensor | None]  # (K, B) each, of the state before the layer; not the first
    log_reward: Tensor  # (K, B)
    lam: float


class Objective(NamedTuple):
    """A loss of the family and what it asks for. source: the policy whose masks it takes."""

    loss: Callable[[Terms], Tensor]
    masks: int = 1  # at least, an example
    log_z: bool = True
    flows: bool = False
    source: str = "train"


def _subtb(t: Terms) -> Tensor:
    flows = [t.log_z, *t.log_flows[1:], t.log_reward.detach()]
    return sub_trajectory_balance(torch.stack(flows), torch.stack(t.log_q), t.lam)


OBJECTIVES = Registry("objective")
OBJECTIVES["tb"] = Objective(lambda t: trajectory_balance(t.log_z, sum(t.log_q), t.log_reward))
OBJECTIVES["vargrad"] = Objective(
    lambda t: log_partition_variance(sum(t.log_q), t.log_reward), masks=2, log_z=False
)
OBJECTIVES["subtb"] = Objective(_subtb, flows=True)
OBJECTIVES["reverse-kl"] = Objective(
    lambda t: reverse_kl(sum(t.log_q), t.log_reward), masks=2, log_z=False, source="q"
)
