"""Tokens of which some are padding: who says so, and what a mean over tokens is then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .tree import leaves


class Tokens(nn.Module):
    """A mask site of a model that pads: `site(h, real)` gives h, (B, T, C), back.

    real: (B, T), True where a token is there. A mask of padding is 1 and its log-probability 0
    under every policy, and no mean over tokens has padding in it.
    """

    # positions only: a hook does not see keywords
    def forward(self, h: Tensor, real: Tensor | None = None, /) -> Tensor:
        return h


def token_mean(h: Tensor, real: Tensor | None) -> Tensor:
    """The mean over real tokens, all where `real` is None: (B, T, C) -> (B, C)."""
    if real is None:
        return h.mean(1)
    weight = real.unsqueeze(-1).to(h.dtype)  # (B, T) -> (B, T, 1)
    return (h * weight).sum(1) / weight.sum(1).clamp_min(1)


def features(x: Any, tokens: bool) -> Tensor | None:
    """The float tensors of x, flattened and joined, (B, n); None where x has none. For a network
    with token sites a sequence (B, T, D) is its mean over the tokens that are not all zero."""
    parts = []
    for leaf in leaves(x):
        if leaf.is_floating_point():
            sequence = tokens and leaf.dim() == 3
            parts.append(token_mean(leaf, (leaf != 0).any(-1)) if sequence else leaf.flatten(1))
    return torch.cat(parts, 1) if parts else None
