"""The scalar building blocks of the losses, all in nats, all per example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    gradient is stopped. Shapes broadcast to (B,)."""
    return log_z + log_q - log_reward.detach()


def trajectory_balance(log_z: Tensor, log_q: Tensor, log_reward: Tensor) -> Tensor:
    """The squared residual of eq (5), (B,), in nats². The state graph is a tree, so P_B = 1."""
    return tb_residual(log_z, log_q, log_reward).square()
