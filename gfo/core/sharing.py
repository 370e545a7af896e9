"""What of a prediction many masks may share: judged from trial passes at `attach`.

Judged from what each module receives, not from the logits, and with random numbers in place of
weights that are still 0: a head or a gate that starts at 0 hides what stands before it.
"""

import contextlib
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from gfo.core.attached import Attached
from gfo.core.batch import call, device_of, leaves, repeat_rows, to_device, tree_map
from gfo.core.prefix import Prefix
from gfo.core.sites import Spec, eval_mode, exchanged, hooked, plain

ROWS = 2  # of a trial pass, which differ
HALVES = slice(None, ROWS), slice(ROWS, None)  # of a folded one
NEARLY_ZERO = 1e-2  # weights below may be a gate that starts shut, as ConvNeXt's 1e-6
Seen = dict[str, list[Tensor]]  # what was received where, call by call: see `digest`


@torch.no_grad()
def judge(net: Attached, example: Any) -> Spec:
    """The network's spec, with what the trial passes found in `batched` and `folds`.

    Folding is allowed where rows under masks give in one pass what they give in two. The part
    before the first mask may be kept where it draws no random number, and every module behind it
    receives from its replay what it receives from a plain pass: else it would have done more than
    return a tensor, such as append its output to a list. Where nothing varies over the rows, that
    cannot be told, and is not allowed.
    """
    spec, gen = net.spec._replace(batched=(), folds=False), torch.Generator().manual_seed(0)
    x = different_rows(to_device(example, device_of(net)), gen)
    sizes = [(s.tokens, s.width) if s.tokens else (s.width,) for s in net.sites]
    masks = [torch.rand(2 * ROWS, *size, generator=gen) + 0.5 for size in sizes]
    # whatever a model raises that takes rows of the example's kind only, or misses what it left
    with contextlib.suppress(Exception), eval_mode(net), stirred(net.model, gen):
        one, other = (received(net, x, [m[half] for m in masks]) for half in HALVES)
        both = received(net, repeat_rows(x, 2), masks)
        if not constant(one["logits"][0]):
            spec = spec._replace(folds=joined(one, other, both))
            if not constant(one["site 0"][0]) and replays(net, x, masks, both):
                spec = spec._replace(batched=net.spec.batched)
    return spec


def different_rows(x: Any, gen: torch.Generator) -> Any:
    """`ROWS` rows like those of x: its own, or where they repeat, disturbed ones."""
    x = tree_map(lambda t: torch.cat([t[:ROWS]] * ROWS)[:ROWS], x)
    if any(len(t.reshape(ROWS, -1).unique(dim=0)) == ROWS for t in leaves(x)):
        return x

    def disturb(t: Tensor) -> Tensor:
        if t.is_floating_point():
            return t + 0.1 * torch.randn(t.shape, generator=gen).to(t)
        return torch.stack([row.roll(i, -1) if t.dim() > 1 else row for i, row in enumerate(t)])

    return tree_map(disturb, x)


def stirred(model: nn.Module, gen: torch.Generator) -> contextlib.AbstractContextManager:
    """Inside the block, parameters and buffers that are nearly 0 throughout are random numbers."""
    held: list[tuple[Any, str, Any]] = [
        (store, name, t)
        for m in model.modules()
        if not isinstance(m, torch.jit.ScriptModule)
        for store in (m._parameters, m._buffers)
        for name, t in store.items()
        if t is not None and readable(t) and t.abs().max() < NEARLY_ZERO
    ]
    other = {id(t): 0.1 * torch.randn(t.shape, generator=gen).to(t) for _, _, t in held}  # tied
    return exchanged((store, name, other[id(t)]) for store, name, t in held)


def readable(t: Tensor) -> bool:
    """Whether it is a tensor of real numbers that can be looked at."""
    return plain(t) and t.is_floating_point() and t.numel() > 0


def received(net: Attached, x: Any, masks: list[Tensor]) -> Seen:
    """What each module, each site and the reader of the logits receive in one masked pass."""
    seen: Seen = defaultdict(list)
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in net.model.parameters())
    coarse = 3e-2 if half else 5e-5 if device_of(net).type == "cpu" else 5e-3  # as TF32

    def note(name: str, given: Any) -> None:
        seen[name] += [digest(t, coarse) for t in leaves(given) if readable(t) and t.dim()]

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        note(f"module {name}", (args, kwargs))

    def mask(layer: int, h: Tensor, real: Tensor | None) -> Tensor:
        note(f"site {layer}", h)
        return h * net.sites[layer].spread(masks[layer]).to(h)

    with hooked(net.model, nn.Module.register_forward_pre_hook, before), net.handling(mask):
        note("logits", net.logits(call(net.model, x)))
    return seen


def digest(t: Tensor, coarse: float) -> Tensor:
    """A row's projection, and by how much rounding may move it, (B, 2).

    Whole activations of every module would fill the memory.
    """
    t = t.reshape(len(t), -1).float().nan_to_num(0.0).clamp(-1e18, 1e18)
    weights = torch.arange(t.shape[1], device=t.device).cos()
    return torch.stack([t @ weights / t.shape[1] ** 0.5, coarse * t.square().mean(1).sqrt()], 1)


def near(a: Tensor, b: Tensor) -> bool:
    """Whether two digests are the same but for rounding."""
    return a.shape == b.shape and bool((a - b)[:, 0].abs().max() <= b[:, 1].max())


def constant(found: Tensor) -> bool:
    """Whether what was received there is the same in every row."""
    return bool((found == found[:1]).all())


def joined(one: Seen, other: Seen, both: Seen) -> bool:
    """Whether one pass over two batches gives what two passes give, wherever the batch leads."""
    return all(
        near(c, torch.cat([a, b]))
        for name in both
        for a, b, c in zip(one[name], other[name], both[name], strict=True)
        if (len(a), len(c)) == (ROWS, 2 * ROWS)
    )


def replays(net: Attached, x: Any, masks: list[Tensor], both: Seen) -> bool:
    """Whether a replayed prefix hands on what a plain pass does, and draws no random number."""
    before, prefix = drawn(net), Prefix(net, x)
    if not torch.equal(drawn(net), before):
        return False
    with prefix.replay(2):
        again = received(net, repeat_rows(x, 2), masks)
    # a module inside the prefix is not called again: those behind it are the last calls
    return all(
        near(got, want)
        for name in again
        for got, want in zip(reversed(again[name]), reversed(both[name]), strict=False)
    )


def drawn(net: Attached) -> Tensor:
    """The state of torch's generators: how many random numbers have been drawn."""
    device, cpu = device_of(net), torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else cpu
