"""Everything about the masks of a network small enough to write all of them down."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import repeat_rows, row_slice, rows, tree_map
from gfo.core.predict import Score, score

LIMIT = 16  # mask bits: 65,536 masks


def all_masks(widths: Sequence[int]) -> list[Tensor]:
    """Every mask of layers this wide; mask k spells k in binary, first layer first.

    Args:
        widths: Bits of each layer.

    Returns:
        One (2^M, C_l) tensor per layer.

    Raises:
        ValueError: Above 16 bits.
    """
    bits = sum(widths)
    if bits > LIMIT:
        hours = f"{2**bits / 3.6e9:.1g} hours per example at a million a second"
        count = f"{bits} mask bits make 2^{bits} masks"
        raise ValueError(f"{count}, {hours}; {LIMIT} bits is the limit")
    powers = 2 ** torch.arange(bits - 1, -1, -1)
    table = (torch.arange(2**bits)[:, None] // powers % 2).float()  # (2^M, M)
    return list(table.split(list(widths), 1))


def score_all(net: Attached, x: Any, y: Tensor) -> Score:
    """`gfo.score` of every mask for every row of x.

    Returns:
        Each entry (B, 2^M), in nats, or None.

    Raises:
        ValueError: For a network with token sites, and above 16 bits.
    """
    if any(site.tokens for site in net.sites):
        raise ValueError("score_all is for sites without tokens: theirs have too many mask bits")
    masks = all_masks([site.width for site in net.sites])
    alone = (row_slice((x, y), b, 1) for b in range(rows(x)))  # (1, ...) -> (2^M, ...)
    by_row = [score(net, *repeat_rows(one, len(masks[0])), masks=masks) for one in alone]
    return tree_map(lambda *each: torch.stack(each), *by_row)


def log_posterior(log_lik: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(z | x, y), log p(y | x)), given log p(y | x, z) and log p(z | x) of all masks."""
    joint = log_lik + log_prior
    evidence = joint.logsumexp(-1, keepdim=True)
    return joint - evidence, evidence.squeeze(-1)  # (B, 2^M), (B,)


def total_variation(log_a: Tensor, log_b: Tensor) -> Tensor:
    """½ Σ ``|a − b|`` over all masks, (B,): 0 for equal distributions, 1 for disjoint ones."""
    return 0.5 * (log_a.exp() - log_b.exp()).abs().sum(-1)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a ‖ b) over all masks, (B,), in nats; masks that a never draws count nothing."""
    return torch.where(log_a.exp() > 0, log_a.exp() * (log_a - log_b), 0).sum(-1)


def local_modes(log_prob: Tensor, step: float = 1e-5) -> Tensor:
    """How many modes no single flipped bit improves.

    Values are rounded to multiples of `step`. Equal masks joined by single flips (the bit of a unit
    that is off anyway changes nothing) are one plateau, which is one mode if no member has a better
    neighbour.

    Args:
        log_prob: (B, 2^M), in `all_masks` order.
        step: In nats.

    Returns:
        (B,).
    """
    height = (log_prob.double() / step).round()
    count = height.shape[-1]
    index = torch.arange(count, device=height.device)
    flips = [index ^ (1 << i) for i in range(count.bit_length() - 1)]
    label = index.expand_as(height).clone()
    beaten = torch.stack([height[..., flip] > height for flip in flips]).any(0)
    for _ in range(count):  # spread the smallest label and "beaten" over each plateau
        before = label.sum() - beaten.sum()
        for flip in flips:
            tied = height[..., flip] == height
            label = torch.where(tied, torch.minimum(label, label[..., flip]), label)
            beaten |= tied & beaten[..., flip]
        if label.sum() - beaten.sum() == before:  # both only fall, beaten being subtracted
            break
    return ((label == index) & ~beaten).sum(-1)
