"""The masked pass: the one primitive of which sampling, scoring, prediction and losses are views.

The backbone runs once; at each site a mask is taken or drawn, scored and applied.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import call, device_of, repeat_rows, rows, tree_map
from gfo.core.handler import SiteHandler, Source, small_features
from gfo.core.noise import Noise, draw_noise, generator
from gfo.core.objectives import SiteTerms, kl_bernoulli, log_bernoulli, total
from gfo.core.sites import eval_mode, preserve_buffers

# A tensor, or None where a pass had no use for it. Which, its caller knows: the type checker takes
# both uses, and no loss has to say again that its pass was given y.
Perhaps = Tensor | Any


class Pass(NamedTuple):
    """What one masked pass saw.

    Lists have one entry per site, in execution order; log-probabilities are in nats. A mask, and
    what depends on nothing else, may have one row for the whole batch. At padding
    (`gfo.core.batch.Tokens`) masks are 1 and logits `gfo.core.objectives.CERTAIN`.

    Attributes:
        logits: (B, K), or (B, K, …): what the likelihood reads.
        masks: (B, C_l) or (B, T_l, C_l) each.
        q_logits: Like masks; None where q was not evaluated.
        p_logits: Like masks; None where p was not evaluated.
        log_z: (B,), or (1,) where one number serves all; None for a method without one.
        log_lik: (B,), None without y.
        log_flows: (B,) each, for the methods that have state flows.
        scores: (log q, log p, KL(q ‖ p)) per site, (B,) each, where `scored` found them.
    """

    logits: Tensor
    masks: list[Tensor]
    q_logits: list[Perhaps]
    p_logits: list[Perhaps]
    log_z: Perhaps
    log_lik: Perhaps
    log_flows: list[Perhaps]
    scores: Sequence[tuple[Tensor, ...]] = ()

    def scored(self) -> "Pass":
        """This pass with its `scores`, which a loss that asks for all three then reads: one look at
        the bits, gradients in closed form (`gfo.core.objectives.SiteTerms`)."""
        if torch.compiler.is_compiling():  # which makes one look of several itself
            return self
        found = map(SiteTerms.apply, self.q_logits, self.p_logits, self.masks)
        return self._replace(scores=list(found))

    @property
    def log_q_sites(self) -> list[Tensor] | Any:
        """log q(z_l | x, y, z_<l) per site, each (B,)."""
        return [s[0] for s in self.scores] or _score(self.q_logits, self.masks)

    @property
    def log_p_sites(self) -> list[Tensor] | Any:
        """log p(z_l | x, z_<l) per site, each (B,)."""
        return [s[1] for s in self.scores] or _score(self.p_logits, self.masks)

    @property
    def kl_sites(self) -> list[Tensor]:
        """KL(q_l ‖ p_l) along the masks before, each (B,); no gradient to q."""
        pairs = zip(self.q_logits, self.p_logits, strict=True)
        return [s[2] for s in self.scores] or [kl_bernoulli(q.detach(), p) for q, p in pairs]

    @property
    def log_q(self) -> Perhaps:
        """log q(z | x, y), shape (B,): the sum over sites (Algorithm 1, var1)."""
        return _total(self.log_q_sites)

    @property
    def log_p(self) -> Perhaps:
        """log p(z | x), shape (B,): the sum over sites (Algorithm 1, var2)."""
        return _total(self.log_p_sites)


def _score(logits: list[Perhaps], masks: list[Tensor]) -> list[Tensor] | None:
    known = bool(logits) and logits[0] is not None
    return [log_bernoulli(a, z) for a, z in zip(logits, masks, strict=True)] if known else None


def _total(sites: list[Tensor] | None) -> Tensor | None:
    return None if sites is None else total(sites)


def masked_pass(
    net: Attached, x: Any, y: Tensor | None = None, *,
    masks: Sequence[Tensor | None] | None = None, noise: Noise | None = None,
    source: Source | None = None,
) -> Pass:  # fmt: skip
    """Run the backbone once under masks.

    x, y and masks are not checked here: the other public functions do that before they call this.

    Args:
        net: What `attach` returned.
        x: (B, ...), or a tuple, list or dict of such.
        y: Labels, where q or the likelihood needs them.
        masks: One per site.
        noise: Uniform numbers, drawn outside, from which masks are made as z = 1[u < σ(logit/T)].
        source: How masks are made of the noise: by the method's training policy ("train"), by q or
            p at temperature 1 ("q", "p") or by the test-time policy ("test"). "mean", which puts
            keep-probabilities in their place, needs neither masks nor noise. None is "given" where
            there are masks, else "test" where there is noise, else "mean".

    Raises:
        ValueError: For an unknown source, for one whose masks, noise or y are missing, and for a
            likelihood that is not one number per row.
    """
    if source is None:
        source = "given" if masks is not None else "mean" if noise is None else "test"
    check_source(source, masks, noise)
    if source in ("q", "train") and masks is None and y is None and net.method.reads_label:
        raise ValueError(f"source {source!r} draws from q, which reads y: pass y")
    reads_x = y is not None or net.method.reads_before  # log Z, h_0
    x_read = small_features(net, x) if reads_x else None
    handler = SiteHandler(net, y, masks, noise, source, x_read)
    with net.handling(handler):
        # a copy: the model may change it in place
        logits = handler.finish(net.logits(call(net.model, x)))
    if y is not None and tuple(logits.shape[1:]) != net.likelihood.outputs:  # of another size
        net.likelihood.check(y, len(logits), tuple(logits.shape[1:]))
    log_lik = None if y is None else net.likelihood.log_lik(logits, y)
    if log_lik is not None and log_lik.shape != logits.shape[:1]:
        raise ValueError(f"log_lik is {tuple(log_lik.shape)}, needs (B,): see td.Independent")
    seen = (handler.masks, handler.q_logits, handler.p_logits, handler.log_z)
    return Pass(logits, *seen, log_lik, handler.log_flows)


def check_source(source: str, masks: Sequence | None, noise: Noise | None) -> None:
    """Raise ValueError for an unknown source, and for one whose masks or noise are missing."""
    if source not in (known := get_args(Source)):
        raise ValueError(f"source {source!r} is not one of {', '.join(known)}")
    if source == "given" and masks is None:
        raise ValueError("source 'given' needs masks=[…], one per site")
    drawn = masks is None or any(mask is None for mask in masks)
    if source not in ("given", "mean") and drawn and noise is None:
        raise ValueError(f"source {source!r} draws masks: pass noise=noise_for(net, B, generator)")


@torch.no_grad()
def without_gradient(net: Attached, x: Any, y: Tensor | None = None, **how) -> Pass:
    """A masked pass that leaves no mark: no gradient, no BatchNorm buffer moved, modes kept."""
    with net.exclusive(), eval_mode(net):
        return masked_pass(net, x, y, **how)


def drawn_pass(net: Attached, x: Any, y: Tensor | None, source: str, *key: Any) -> Pass:
    """A pass that leaves no mark; its noise comes from `key`, a seed and what it is for."""
    noise = noise_for(net, rows(x), generator(*key, device=device_of(net)))
    return without_gradient(net, x, y, noise=noise, source=source)


class BatchPass:
    """The masked pass on one batch, as a method's loss calls it.

    Noise comes from (key, draw): equal draws give equal noise, whatever else differs.

    Args:
        net: The network.
        x: Inputs.
        y: Labels.
        key: Of the noise: a seed, and what it is for.
        shard: (rank, world) where this is part `rank` of a batch that lies on `world` processes in
            equal parts: its rows get the noise that they get in the whole batch.
    """

    def __init__(self, net: Attached, x: Any, y: Tensor, key: tuple, shard: tuple = (0, 1)):
        self.net, self.x, self.y, self.key, self.shard = net, x, y, key, shard

    def noise(self, draw: int = 0, repeat: int = 1) -> Noise:
        """The uniform numbers that the pass with this `draw` and `repeat` makes its masks from."""
        gen = generator(*self.key, draw, device=self.y.device)
        rank, world = self.shard
        noise = noise_for(self.net, repeat * world * rows(self.x), gen)
        if count := self.net.method.count:  # its masks take turns, row by row
            turns = torch.arange(len(noise.explore), device=gen.device) + 0.5
            # in few rows the last masks would never have theirs
            turns += (noise.explore[0, 0] * count).floor() * (len(turns) < count)
            noise = noise._replace(explore=(turns / count % 1).unsqueeze(1))
        if world == 1 or self.net.method.shared:
            return noise
        copies = (repeat, world, -1)  # (S·W·B, ...) -> (S·B, ...)
        return tree_map(lambda t: t.unflatten(0, copies)[:, rank].flatten(0, 1), noise)

    def __call__(
        self, source: Source = "train", draw: int = 0, *, repeat: int = 1,
        masks: Sequence[Tensor | None] | None = None, still: bool = False,
        forward_only: bool = False,
    ) -> Pass:  # fmt: skip
        """One masked pass over the batch.

        Args:
            source: Which policy draws, as in `masked_pass`.
            draw: Number of the noise.
            repeat: Copies of the batch folded into it, a mask each; row s·B + b is copy s of row b.
            masks: One per site to impose, None where the site draws its own.
            still: No buffer moves, for passes beside the one that trains the backbone; BatchNorm
                normalises by the batch there too.
            forward_only: No gradient either.
        """
        x, y = (self.x, self.y) if repeat == 1 else repeat_rows((self.x, self.y), repeat)
        how: dict[str, Any] = dict(masks=masks, noise=self.noise(draw, repeat), source=source)
        if not (still or forward_only):
            return masked_pass(self.net, x, y, **how)
        recorded = torch.no_grad() if forward_only else contextlib.nullcontext()
        with self.net.exclusive(), preserve_buffers(self.net.model), recorded:
            return masked_pass(self.net, x, y, **how)


def noise_for(net: Attached, batch: int, gen: torch.Generator) -> Noise:
    """Noise for one pass over `batch` rows; one row if the method shares its mask."""
    return draw_noise(net.sites, 1 if net.method.shared else batch, gen)
