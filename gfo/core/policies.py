"""Distributions over masks, layer after layer: q, p, the fixed prior, and log Z.

A policy is called once per site. Given a mask it returns that mask with its logits; given a
`draw` function it draws one. That one signature serves policies whose bits are drawn in parallel
(here) and those that draw bit after bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfo.core.batch import token_mean
from gfo.core.registry import Registry

# draw(logits, some): masks for the logits of some bits of a site (a slice; all by default)
Draw = Callable[..., Tensor]


class Context(NamedTuple):
    """What a policy may read at site l, gradients stopped.

    Attributes:
        h: h'_l, (B, C) or (B, T, C), spatial means for feature maps.
        h_before: h_{l−1}, the masked activation of the previous site (x itself, flattened, at
            l = 1).
        y: Encoded labels (B, K), or None where the label is not known.
        earlier: The masks z_1 … z_{l−1}.
        real: (B, T) at each of the sites 1 … l, True where a token is none of padding; None where
            all are, or where the site has no tokens.
    """

    h: Tensor
    h_before: Tensor | None
    y: Tensor | None
    earlier: list[Tensor]
    real: Sequence[Tensor | None]


def small_mlp(inputs: int, hidden: int, outputs: int, start: float = 0.0) -> nn.Sequential:
    """Linear–LayerNorm–LeakyReLU–Linear.

    The last weights are zero at first, so that all outputs start at one value, whatever the inputs:
    log Z at 0, a mask policy at one keep-probability.

    Args:
        inputs: Numbers read.
        hidden: Width of the hidden layer.
        outputs: Numbers returned.
        start: What they start at.
    """
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(), last)


def like_weights(inputs: Tensor, first: nn.Linear | Any) -> Tensor:
    """`inputs` in the number format of a generator, whatever that of the backbone is."""
    return inputs.to(first.weight.dtype)


def align(part: Tensor, tokens: int | None, real: Tensor | None = None) -> Tensor:
    """Bring a mask or activation to one site's layout.

    Args:
        part: (B, C), or (B, T', C).
        tokens: T of the site, None where it has no tokens.
        real: (B, T'), True at the tokens that are no padding.

    Returns:
        `part` where the token counts agree, else its mean over tokens (over the real ones),
        repeated for each token of the site.
    """
    if part.dim() == 3 and part.shape[1] != tokens:
        part = token_mean(part, real)  # (B, T', C) -> (B, C)
    if tokens and part.dim() == 2:
        part = part.unsqueeze(1).expand(-1, tokens, -1)  # (B, C) -> (B, T, C)
    return part


class LayerwisePolicy(nn.Module):
    """The paper's policy: all bits of a layer in parallel, one small network per layer.

    Args:
        sites: The network's sites.
        classes: K, how many there are.
        reads: Any of "h" (activation), "h_before", "y" (label) and "z" (masks of all earlier
            layers).
        before: Width of what the first site's "h_before" reads.
        hidden: Width of each small network.
        outputs: Numbers that a site returns, if not one per bit; as a logit, 1 serves all bits.
        keep: The keep-probability that every bit starts at.
    """

    def __init__(
        self, sites: Sequence, classes: int, reads: Sequence[str], *, before: int | None = None,
        hidden: int = 32, outputs: int | None = None, keep: float = 0.5,
    ):  # fmt: skip
        super().__init__()
        self.reads = tuple(reads)
        self.nets = nn.ModuleList()
        start = float(torch.logit(torch.tensor(keep)))
        for layer, site in enumerate(sites):
            widths: Any = {"h": site.width, "y": classes, "z": sum(s.width for s in sites[:layer])}
            widths["h_before"] = sites[layer - 1].width if layer else before
            inputs = sum(widths[name] for name in self.reads)
            self.nets.append(self.network(max(inputs, 1), hidden, outputs or site.width, start))

    network = staticmethod(small_mlp)

    def inputs(self, context: Context) -> Tensor:
        """Everything this policy reads at one site: (B, n) or (B, T, n)."""
        tokens = context.h.shape[1] if context.h.dim() == 3 else None
        *before, _ = context.real
        named: dict[str, Any] = {"h": [(context.h, None)], "y": [(context.y, None)]}
        named["h_before"] = [(context.h_before, before[-1] if before else None)]
        named["z"] = zip(context.earlier, before, strict=True)
        parts = [align(part, tokens, real) for name in self.reads for part, real in named[name]]
        # the first site of q(z) reads nothing: a constant stands in
        return torch.cat(parts, -1) if parts else align(context.h.new_ones(1, 1), tokens)

    def evaluate(self, layer: int, context: Context) -> Tensor:
        """What the network of one site says of its inputs."""
        net: Any = self.nets[layer]
        return net(like_weights(self.inputs(context), net[0]))

    def forward(
        self, layer: int, context: Context, mask: Tensor | None, draw: Draw | Any = None
    ) -> tuple[Tensor, Tensor]:
        """(mask, logits) at one site.

        Args:
            layer: Number of the site.
            context: What may be read there.
            mask: The mask to score; None to draw one.
            draw: `draw(logits)` gives a mask.
        """
        logits = self.evaluate(layer, context)
        if logits.shape[-1] != context.h.shape[-1]:  # one serves all bits
            logits = logits.expand(*logits.shape[:-1], context.h.shape[-1])
        return (draw(logits) if mask is None else mask), logits


class UnitNet(nn.Module):
    """Logits of a layer's bits, each given the bits before it.

    a_i = b_i + v_i · silu(W·inputs + Σ_{j<i} z_j U_j), a neural autoregressive estimator (NADE,
    Larochelle & Murray, 2011).
    """

    def __init__(self, inputs: int, hidden: int, width: int, start: float = 0.0):
        super().__init__()
        self.read = nn.Linear(inputs, hidden)  # W
        self.kept = nn.Parameter(torch.randn(width, hidden) / width**0.5)  # U
        self.out = nn.Parameter(torch.zeros(width, hidden))  # v; all logits are b at first
        self.bias = nn.Parameter(torch.full((width,), start))  # b

    def forward(self, start: Tensor, mask: Tensor) -> Tensor:
        """What `read` gives (..., H) and a mask (..., C) -> logits (..., C), all bits at once."""
        added = mask.unsqueeze(-1) * self.kept  # (..., C, H)
        state = start.unsqueeze(-2) + added.cumsum(-2) - added
        return (F.silu(state) * self.out).sum(-1) + self.bias

    @torch.no_grad()
    def draw(self, state: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """A mask (..., C), drawn bit after bit given `state` (..., H), and its logits."""
        bits, logits = [], []
        for i in range(len(self.kept)):
            logits.append((F.silu(state) * self.out[i]).sum(-1, keepdim=True) + self.bias[i])
            bits.append(draw(logits[-1], slice(i, i + 1)))
            state = state + bits[-1] * self.kept[i]
        return torch.cat(bits, -1), torch.cat(logits, -1)


class UnitwisePolicy(LayerwisePolicy):
    """Each bit given the earlier bits of its layer too: any distribution over masks is in reach.

    Scoring a mask of C bits is one pass; drawing one takes C small steps in sequence, which is what
    the paper's layer-wise policy saves.
    """

    network = staticmethod(UnitNet)

    def forward(
        self, layer: int, context: Context, mask: Tensor | Any, draw: Draw | Any = None
    ) -> tuple[Tensor, Tensor]:
        """(mask, logits) at one site; the logits are those given the mask's own earlier bits."""
        net: Any = self.nets[layer]
        start = net.read(like_weights(self.inputs(context), net.read))
        if mask is None:
            mask, logits = net.draw(start, draw)
            if not torch.is_grad_enabled():
                return mask, logits  # scoring again would hold (B, C, H) numbers at once
        return mask, net(start, mask)


class FixedPolicy(nn.Module):
    """Independent Bernoulli(keep), the same for every bit and input."""

    def __init__(self, sites: Sequence, keep: float):
        super().__init__()
        logit = torch.logit(torch.tensor(keep, dtype=torch.float64)).float()
        self.logits = nn.Buffer(logit.repeat(len(sites)), persistent=False)  # (L,)

    def forward(
        self, layer: int, context: Context, mask: Tensor | None, draw: Draw | Any = None
    ) -> tuple[Tensor, Tensor]:
        """(mask, logits) at one site; the logits have one row and broadcast."""
        # a copy: a view of a learned logit would ask for gradient even where none is recorded
        logits = self.logits[layer].repeat(1, *context.h.shape[1:])
        return (draw(logits) if mask is None else mask), logits


class LearnedPolicy(FixedPolicy):
    """Independent Bernoullis with one learned keep-probability per layer, starting at `keep`."""

    def __init__(self, sites: Sequence, keep: float):
        super().__init__(sites, keep)
        self.logits = nn.Parameter(self.logits)  # takes the buffer's place


class LogZ(nn.Module):
    """log Z_γ(x, y), the partition function estimator of eq (5), shape (B,), in nats."""

    def __init__(self, inputs: int, classes: int, hidden: int = 32):
        super().__init__()
        self.net = small_mlp(inputs + classes, hidden, 1)

    def forward(self, features: Tensor, y: Tensor) -> Tensor:
        """`features` (B, n): x flattened, or the stopped activation at the first site."""
        inputs = like_weights(torch.cat([features, y], 1), self.net[0])
        return self.net(inputs).squeeze(1).float()  # (B, 1) -> (B,)


POLICIES = Registry("policy", {"layerwise": LayerwisePolicy, "unitwise": UnitwisePolicy})
