"""Walks through the sites of one pass, drawing, scoring and applying masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from gfo.core.batch import features, token_mean
from gfo.core.noise import Noise
from gfo.core.objectives import CERTAIN
from gfo.core.policies import Context, LogZ

if TYPE_CHECKING:
    from gfo.core.attached import Attached

Source = Literal["train", "q", "p", "test", "mean", "given"]
PADDED = (1.0, CERTAIN, CERTAIN)  # mask, q logit and p logit at padding


def small_features(net: "Attached", x: Any) -> Tensor | None:
    """The floats of x, (B, n), where they are few; else None."""
    return None if net.spec.x_size is None else features(x, any(s.tokens for s in net.spec.sites))


class SiteHandler:
    """Walks through the sites of one pass, drawing, scoring and applying masks."""

    def __init__(
        self, net: "Attached", y: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None, noise: Noise | None = None,
        source: Source = "given", x: Tensor | None = None,
    ):  # fmt: skip
        self.net, self.given, self.noise, self.source, self.x = net, masks, noise, source, x
        self.y = None if y is None or source == "test" else net.likelihood.encode(y)
        read = isinstance(net.method.log_z, LogZ) and self.y is not None or net.method.reads_before
        width = 0 if x is None else x.shape[1]
        if read and width != (net.spec.x_size or 0):
            read = f"the {net.spec.x_size} numbers of the example's input, here are {width}"
            raise ValueError(f"log Z reads {read}: pass inputs of one size, or take VarGrad")
        self.masks: list[Tensor] = []
        self.real: list[Tensor | None] = []
        self.q_logits: list[Tensor | None] = []
        self.p_logits: list[Tensor | None] = []
        self.log_z: Tensor | None = None
        self.log_flows: list[Tensor | None] = []
        self.before = x  # what the generators may read as h_{l−1}

    @property
    def missing(self) -> str:
        """The name of the site whose turn it is."""
        return self.net.sites[len(self.masks)].name

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
        site, what = self.net.sites[layer], f"site {self.net.sites[layer].name!r}"
        if layer > len(self.masks):
            cure = "switch off what skips layers (LayerDrop)"
            raise ValueError(f"site {self.missing!r} was skipped: {cure}")
        if layer != len(self.masks):
            raise ValueError(f"{what} ran out of turn: the example ran another order")
        if h.dim() != len(site.axes) or h.shape[site.axes.index("C")] != site.width:
            had = f"the example had width {site.width} on axes {site.axes}"
            raise ValueError(f"{what} has shape {tuple(h.shape)}, {had}: pass inputs like it")
        method = self.net.method
        if real is not None:  # where one mask serves all, a token that any row has counts
            real = real.bool().any(0, keepdim=True) if method.shared else real.bool()
        self.real.append(real)
        context = Context(site.pool(h.detach()), self.before, self.y, self.masks, self.real)
        if layer == 0 and self.y is not None:
            self.log_z = method.log_partition(self.log_z_features(context), context)
        self.log_flows.append(None if self.y is None else method.log_flow(layer, context))
        given = None if self.given is None else self.given[layer]
        tokens = context.h.shape[1]  # where the site has any
        if given is not None and site.tokens and given.shape[1] != tokens:
            raise ValueError(f"mask of {what} has {given.shape[1]} tokens, x {tokens} there")
        u, explore = None, None
        if (noise := self.noise) is not None:
            # which of a method's `count` masks acts, one number says for all sites
            u, explore = noise.u[layer], noise.explore[:, 0 if method.count else layer, None]
            if site.tokens and tokens > site.tokens:  # noise does not reach
                had = f"the example had {site.tokens}: attach with one of the longest kind"
                raise ValueError(f"{what} has {tokens} tokens, {had}")
            u = u[:, :tokens] if site.tokens else u
        found = method.mask_at_site(layer, context, given, u, explore, self.source)
        if real is not None:
            found = [except_padding(t, real, c) for t, c in zip(found, PADDED, strict=True)]
        mask, q_logits, p_logits = found
        self.masks.append(mask)
        self.q_logits.append(q_logits)
        self.p_logits.append(p_logits)
        masked = h * site.spread(method.scale(mask)).to(h.dtype)
        if method.reads_before:
            self.before = site.pool(masked.detach().clone())  # what follows may work in place
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
            said = f"site {self.missing!r} did not run in this pass, though it did on example"
            why = "compiled before attach? a model that skips layers, as by LayerDrop?"
            raise ValueError(f"{said} (after detach()? {why})")
        return output


def except_padding(values: Tensor | None, real: Tensor, constant: float) -> Tensor | Any:
    """`values` (B or 1, T, C) at real tokens (B, T), `constant` at padding."""
    return None if values is None else torch.where(real.unsqueeze(-1), values, constant)
