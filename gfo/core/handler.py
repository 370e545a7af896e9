"""Walks through the sites of one pass, drawing, scoring and applying masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gfo.core.batch import features, token_mean
from gfo.core.noise import Noise
from gfo.core.objectives import CERTAIN
from gfo.core.policies import Context
from gfo.core.sites import Site

if TYPE_CHECKING:
    from gfo.core.attached import Attached

Source = Literal["train", "q", "p", "test", "mean", "given"]
PADDED = (1.0, CERTAIN, CERTAIN)  # mask, q logit and p logit at padding


def small_features(net: "Attached", x: Any) -> Tensor | None:
    """The floats of x, (B, n), where they are few; else None."""
    return None if net.spec.x_size is None else features(x, net.spec.has_tokens)


class SiteHandler:
    """Walks through the sites of one pass, drawing, scoring and applying masks."""

    def __init__(
        self,
        net: "Attached",
        y: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        noise: Noise | None = None,
        source: Source = "given",
        x: Tensor | None = None,
    ):
        self.net, self.given, self.noise, self.source, self.x = net, masks, noise, source, x
        known = y is not None and source != "test"
        self.y = net.likelihood.encode(y, net.spec.classes) if known else None
        self.masks: list[Tensor] = []
        self.real: list[Tensor | None] = []
        self.q_logits: list[Tensor | None] = []
        self.p_logits: list[Tensor | None] = []
        self.log_z: Tensor | None = None
        self.log_flows: list[Tensor | None] = []
        self.before = x  # what the generators may read as h_{l−1}

    def __call__(self, layer: int, h: Tensor, real: Tensor | None = None) -> Tensor:
        """The activation under its mask.

        Policies and log Z compute in their own number format whatever autocast asks of the
        backbone: a log-probability sums over hundreds of bits.
        """
        if not torch.is_autocast_enabled(h.device.type):
            return self.mask(layer, h, real)
        with torch.autocast(h.device.type, enabled=False):
            return self.mask(layer, h, real)

    def mask(self, layer: int, h: Tensor, real: Tensor | None) -> Tensor:
        """The activation (in the module's own axes) under the mask that is taken or drawn here."""
        site = self.net.sites[layer]
        if layer != len(self.masks):
            raise ValueError(f"site {site.name!r} ran out of turn: the example ran another order")
        method = self.net.method
        if real is not None and method.shared:  # one mask for all: a token that any row has counts
            real = real.any(0, keepdim=True)
        self.real.append(real)
        context = Context(site.pool(h.detach()), self.before, self.y, self.masks, self.real)
        if layer == 0 and self.y is not None:
            self.log_z = method.log_partition(self.log_z_features(context), context)
        self.log_flows.append(None if self.y is None else method.log_flow(layer, context))
        given = None if self.given is None else self.given[layer]
        if given is not None and site.tokens and given.shape[1] != context.h.shape[1]:
            raise ValueError(
                f"mask of {site.name!r} has {given.shape[1]} tokens, x {context.h.shape[1]} there"
            )
        u, explore = None, None
        if self.noise is not None:
            u, explore = self.noise.u[layer], self.noise.explore[:, layer : layer + 1]
            if site.tokens:
                u = u[:, : token_count(site, h)]
        found = method.mask_at_site(layer, context, given, u, explore, self.source)
        if real is not None:
            found = [except_padding(t, real, c) for t, c in zip(found, PADDED, strict=True)]
        mask, q_logits, p_logits = found
        self.masks.append(mask)
        self.q_logits.append(q_logits)
        self.p_logits.append(p_logits)
        masked = h * site.spread(method.scale(mask)).to(h.dtype)
        if method.reads_before:
            self.before = site.pool(masked.detach())
        return masked

    def log_z_features(self, context: Context) -> Tensor:
        """What log Z reads besides y, (B, n): see `Spec.log_z_size`."""
        if self.x is not None and len(self.net.spec.shapes) == 1:
            return self.x
        h = token_mean(context.h, context.real[0]) if context.h.dim() == 3 else context.h
        return h if self.x is None else torch.cat([self.x, h], 1)

    def finish(self, output: Any) -> Any:
        """What the model returned, once every site has run."""
        if len(self.masks) != len(self.net.sites):
            missing = self.net.sites[len(self.masks)].name
            raise ValueError(
                f"site {missing!r} did not run in this pass, though it did on example (after "
                "detach()? or compiled before attach: compile afterwards)"
            )
        return output


def token_count(site: Site, h: Tensor) -> int:
    """The number of tokens of an activation.

    Raises:
        ValueError: Where the example had fewer, and noise does not reach.
    """
    count = h.shape[site.axes.index("T")]
    if count > (site.tokens or 0):
        raise ValueError(
            f"site {site.name!r} has {count} tokens, the example had {site.tokens}: attach with an "
            "example of the longest kind"
        )
    return count


def except_padding(values: Tensor | None, real: Tensor, constant: float) -> Tensor | Any:
    """`values` (B or 1, T, C) at real tokens (B, T), `constant` at padding."""
    if values is None:
        return None
    return torch.where(real.unsqueeze(-1), values, constant)  # (B, T, 1), (B, T, C) -> (B, T, C)
