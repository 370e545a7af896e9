"""Building blocks of the losses, all in nats, and the family of objectives that train q."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.core.registry import Registry

CERTAIN = 1e4  # the logit of a bit that is 1 whatever happens: its log-probability and its KL from
# another certain one are exactly 0 in float32, and it has no gradient


def total(terms: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor; the built-in `sum` would start at the integer 0."""
    return functools.reduce(torch.add, terms)


def log_bernoulli(logits: Tensor, mask: Tensor) -> Tensor:
    """log probability of a 0/1 mask under independent Bernoulli(σ(logits)), summed over its bits.

    z·a − softplus(a) equals z·log σ(a) + (1 − z)·log(1 − σ(a)) and never takes log 0. In float32:
    of some million bits per example, tokens counted, the difference of two sums is off by tenths of
    a nat.

    Args:
        logits: (B, C) or (B, T, C), where B may be 1.
        mask: Of the same shape; its B may be 1 too.

    Returns:
        (B,), in nats.
    """
    logits = logits.float()
    return (mask * logits - F.softplus(logits)).flatten(1).sum(1)  # (B, ...) -> (B,)


def kl_bernoulli(q_logits: Tensor, p_logits: Tensor) -> Tensor:
    """KL(q_l ‖ p_l) of two layers of independent Bernoullis, in closed form.

    Args:
        q_logits: (B, C) or (B, T, C).
        p_logits: Of the same shape.

    Returns:
        (B,), in nats.
    """
    a, b = q_logits.float(), p_logits.float()
    return (torch.sigmoid(a) * (a - b) + F.softplus(b) - F.softplus(a)).flatten(1).sum(1)


class SiteTerms(torch.autograd.Function):
    """log q(z_l), log p(z_l) and KL(q_l ‖ p_l) of one site, each (B,), in nats, from one pass over
    its bits, with their gradients in closed form.

    In the logits of q, log q pulls by mask − probability: trajectory balance, whose residual scales
    it, by 2 · residual · (mask − probability). The KL is for p, which follows q: it pulls the
    logits of p by p's probability − q's, and those of q not at all.
    """

    @staticmethod
    def forward(ctx: Any, q_logits: Tensor, p_logits: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """(log q, log p, KL), each (B,), in nats."""
        a, b = q_logits.float(), p_logits.float()
        plus_a, plus_b = F.softplus(a), F.softplus(b)
        ctx.save_for_backward(mask, q_logits, p_logits)
        ctx.materialize_grads = False
        bits = mask * a - plus_a, mask * b - plus_b, a.sigmoid() * (a - b) + plus_b - plus_a
        return tuple(each.flatten(1).sum(1) for each in bits)  # (B, ...) -> (B,)

    @staticmethod
    def backward(ctx: Any, log_q: Tensor | None, log_p: Tensor | None, kl: Tensor | None) -> tuple:
        """Gradients in both logits; the mask has none."""
        mask, q_like, p_like = ctx.saved_tensors
        keep_q, keep_p = q_like.float().sigmoid(), p_like.float().sigmoid()  # anew: differentiable
        on_p = _pull(log_p, mask, keep_p, p_like), _pull(kl, keep_p, keep_q.detach(), p_like)
        found = [pull for pull in on_p if pull is not None]
        return _pull(log_q, mask, keep_q, q_like), total(found) if found else None, None


def _pull(weight: Tensor | None, above: Tensor, below: Tensor, like: Tensor) -> Tensor | Any:
    """weight · (above − below), weight (B,), bits (B, C) or (B, T, C), in the shape of `like`."""
    if weight is None:
        return None
    gap = above - below
    weighed = gap * weight.view(-1, *[1] * (gap.dim() - 1))  # (B,) -> (B, 1[, 1])
    return weighed.sum_to_size(like.shape).to(like.dtype)


def fixed_at(keep: float, logits: Tensor) -> Tensor:
    """Logits of Bernoulli(keep) in the shape of others; padding, which is certain, stays."""
    return torch.where(logits == CERTAIN, logits, torch.logit(torch.tensor(keep)).to(logits))


def tb_residual(log_z: Tensor, log_q: Tensor, log_reward: Tensor) -> Tensor:
    """log Z + log q(z) − log R(z), the bracket of eqs (5), (6) and (10).

    R is a target, so its gradient is stopped. Shapes broadcast to (B,), in nats.

    Raises:
        ValueError: Where there is no log Z.
    """
    if log_z is None:
        raise ValueError("trajectory balance needs log Z and this policy has none: use vargrad")
    return log_z + log_q - log_reward.detach()


def trajectory_balance(log_z: Tensor, log_q: Tensor, log_reward: Tensor) -> Tensor:
    """The squared residual of eq (5), (B,), in nats². The state graph is a tree, so P_B = 1."""
    return tb_residual(log_z, log_q, log_reward).square()


def log_partition_variance(log_q: Tensor, log_reward: Tensor) -> Tensor:
    """Variance over K masks of log R − log q (VarGrad, Richter et al., 2020).

    It is trajectory balance with the mean of log R − log q over the example's own masks as log Z.
    The variance is the unbiased one, so that the on-policy gradient is exactly twice that of
    KL(q ‖ posterior), as trajectory balance's is.

    Args:
        log_q: (K, B).
        log_reward: (K, B).

    Returns:
        (B,), in nats².
    """
    return (log_reward.detach() - log_q).var(0)


def sub_trajectory_balance(log_flows: Tensor, log_q: Tensor, lam: float) -> Tensor:
    """SubTB(λ) (Madan et al., 2023).

    The squared residual log F(s_i) + log q(s_i → s_j) − log F(s_j) of each pair i < j weighs
    λ^(j−i), normalised.

    Args:
        log_flows: log F of the states z_≤0 … z_≤L, (L + 1, ...); the first is log Z, the last
            log R.
        log_q: Of each layer, (L, ...).
        lam: λ; 0 is detailed balance, inf trajectory balance.

    Returns:
        (...), in nats².
    """
    layers = len(log_q)
    drawn = torch.cat([torch.zeros_like(log_q[:1]), log_q.cumsum(0)])
    i, j = torch.triu_indices(layers + 1, layers + 1, 1)
    potential = log_flows - drawn  # a residual is the difference of two potentials
    squares = (potential[i] - potential[j]).square()  # (pairs, ...)
    gap = (j - i - (1 if lam <= 1 else layers)).to(squares)  # the largest weight is 1
    weight = squares.new_tensor(float(lam)) ** gap
    # no matrix product, which autocast would round
    return (squares.movedim(0, -1) * (weight / weight.sum())).sum(-1)


def reverse_kl(log_q: Tensor, log_reward: Tensor) -> Tensor:
    """KL(q ‖ posterior) − log p(y | x) from K masks of q itself.

    The value is the mean of log q − log R, minus the ELBO. The gradient is REINFORCE with the
    leave-one-out baseline (Kool et al., 2019), unbiased.

    Args:
        log_q: (K, B).
        log_reward: (K, B).

    Returns:
        (B,), in nats.
    """
    cost = (log_q - log_reward).detach()
    advantage = (cost - cost.mean(0)) * len(cost) / (len(cost) - 1)  # cost − mean of the others
    surrogate = (advantage * log_q).mean(0)
    return cost.mean(0) + surrogate - surrogate.detach()


class Terms(NamedTuple):
    """What an objective compares, for K masks per example. Lists have one entry per layer.

    Attributes:
        log_z: (K, B).
        log_q: (K, B) each.
        log_flows: (K, B) each, of the state before the layer; not the first.
        log_reward: (K, B).
        lam: λ of SubTB(λ).
    """

    log_z: Tensor | Any
    log_q: list[Tensor]
    log_flows: list[Tensor | Any]
    log_reward: Tensor
    lam: float


class Objective(NamedTuple):
    """A loss of the family and what it asks for.

    Attributes:
        loss: `loss(terms)` gives (B,), or (K, B). None where pseudo-passes give the gradient
            (`gfo.methods.arm`): of one mask, under a policy whose bits know nothing of each other.
        masks: How many masks per example it needs at least.
        log_z: Whether it needs a log Z net.
        flows: Whether it needs state flows.
        source: The policy whose masks it takes.
    """

    loss: Callable[[Terms], Tensor] | None
    masks: int = 1
    log_z: bool = True
    flows: bool = False
    source: Any = "train"


def _subtb(t: Terms) -> Tensor:
    flows = [t.log_z, *t.log_flows[1:], t.log_reward.detach()]
    return sub_trajectory_balance(torch.stack(flows), torch.stack(t.log_q), t.lam)


OBJECTIVES = Registry("objective")
OBJECTIVES["tb"] = Objective(lambda t: trajectory_balance(t.log_z, total(t.log_q), t.log_reward))
OBJECTIVES["vargrad"] = Objective(
    lambda t: log_partition_variance(total(t.log_q), t.log_reward), masks=2, log_z=False
)
OBJECTIVES["subtb"] = Objective(_subtb, flows=True)
OBJECTIVES["reverse-kl"] = Objective(
    lambda t: reverse_kl(total(t.log_q), t.log_reward), masks=2, log_z=False, source="q"
)
OBJECTIVES["arm"] = Objective(None, log_z=False, source="q")


def free_objectives() -> list[str]:
    """Names of those that compare masks which a policy drew freely, without pseudo-passes."""
    return [name for name, objective in OBJECTIVES.items() if objective.loss]
