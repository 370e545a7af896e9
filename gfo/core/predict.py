"""Views of the masked pass without gradient: sample masks, score them, predict.

Inputs go to the device of the network, results come back to the device of the inputs.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, leaves, repeat_rows, row_slice, rows, to_device, tree_map
from gfo.core.blocks import block_rows, fold_of, in_blocks, inputs, is_loader
from gfo.core.checks import check_batch, check_counts, check_finite, check_masks, check_net, check_x
from gfo.core.ensemble import Ensemble
from gfo.core.masked_pass import Pass, drawn_pass, masked_pass, without_gradient
from gfo.core.noise import derive, draw_noise, generator
from gfo.core.prefix import Prefix
from gfo.core.sites import eval_mode

# Bytes of the largest activation that one folded pass may take. A GPU wants many rows at once; on a
# CPU larger tensors leave the cache, and their memory goes back to the system after every pass.
MEMORY, MEMORY_CPU = 512 * 2**20, 2 * 2**20

# reduce(net, parts, S): of one block of inputs, whose logits come in parts (s, b, K) of its S masks
Reduce = Callable[[Attached, Iterable[Tensor], int], Tensor]


class Score(NamedTuple):
    """Log-probabilities of given masks, each (B,), in nats; None where a method has none.

    Attributes:
        log_q: log q(z | x, y), of z under the posterior policy.
        log_p: log p(z | x), of z under the prior.
        log_z: log Z(x, y), which at the optimum is log Σ_z R(z).
        log_lik: log p(y | x, z).
    """

    log_q: Tensor | None
    log_p: Tensor | None
    log_z: Tensor | None
    log_lik: Tensor


def sample(
    net: Attached, x: Any, y: Tensor | None = None, *, seed: int | None = None
) -> list[Tensor]:
    """Draw masks: from q(z | x, y) at temperature 1 if y is given, else by the test-time policy.

    Methods without a q draw from their only policy either way.

    Args:
        net: What `attach` returned.
        x: A batch, of tensors or NumPy arrays.
        y: Its labels, or None.
        seed: Of the masks; None takes torch's global generator.

    Returns:
        One 0/1 tensor per site in execution order, (B, C) or (B, T, C).

    Raises:
        ValueError: On bad x or y, and where the network answers NaN.
    """
    check_net(net)
    x, y = (check_x(net, x), None) if y is None else check_batch(net, x, y)
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    back = leaves(x)[0].device
    x, y = to_device((x, y), device_of(net))
    out = drawn_pass(net, x, y, "test" if y is None else "q", seed, "sample")
    check_finite(net, out.logits, *out.q_logits, *out.p_logits)
    return [mask.expand(rows(x), *mask.shape[1:]).clone().to(back) for mask in out.masks]


def score(net: Attached, x: Any, y: Any, masks: Sequence[Tensor]) -> Score:
    """Log-probabilities of given masks.

    log R(z) of the paper is log_lik + log_p.

    Args:
        net: What `attach` returned.
        x: A batch, of tensors or NumPy arrays, or a loader of batches (x, y).
        y: Its labels, None for a loader's own.
        masks: One per site, each (B, C) or (B, T, C), of 0 and 1; of a loader for all its rows.

    Returns:
        `Score(log_q, log_p, log_z, log_lik)`, each (B,), in nats; None where a method has none.

    Raises:
        ValueError: On bad x, y or masks, and where the network answers NaN.
    """
    check_net(net)
    if is_loader(x):
        return _score_batches(net, x, y, masks)
    x, y = check_batch(net, x, y)
    masks = check_masks(net, masks, (rows(x),))
    back = leaves(x)[0].device
    x, y, masks = to_device((x, y, masks), device_of(net))
    out = without_gradient(net, x, y, masks=masks)
    parts = (out.log_q, out.log_p, out.log_z, out.log_lik)
    check_finite(net, *parts)
    return Score._make(t if t is None else t.expand(rows(x)).clone().to(back) for t in parts)


def _score_batches(net: Attached, loader: Iterable, y: Any, masks: Sequence[Tensor]) -> Score:
    """`score` of the batches of a loader, one after the other."""
    if y is not None:
        raise ValueError("a loader yields its own labels: pass y=None")
    found, done = [], 0
    for item in loader:
        x, rest = inputs(net, item)
        if not rest:
            raise ValueError("score needs labels: pass a loader of batches (x, y)")
        found.append(score(net, x, rest[0], [mask[done : done + rows(x)] for mask in masks]))
        done += rows(x)
    if not found or any(len(mask) != done for mask in masks):
        raise ValueError(f"masks have {[len(m) for m in masks]} rows, the loader yields {done}")
    return Score._make(None if p[0] is None else torch.cat(p) for p in zip(*found, strict=True))


def predict(net: Attached | Ensemble, x: Any, samples: int = 20, **how) -> Tensor:
    """Mean of the predictive over masks of the test-time policy.

    Class probabilities (B, K), or what else the likelihood has for a mean (`Likelihood.mean`). Rows
    that act on each other, as under batch statistics in eval mode, do so within blocks of 256.

    The same call gives the same answer: masks come from `seed` (0 by default). Answers are summed
    block by block in float64, so memory does not grow with samples × inputs × classes, and the mean
    of float32 probabilities is right to 1e-7.

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch, or a loader: see `sample_logits`.
        samples: How many masks. A method that has `count` in all takes each of them once instead.
        **how: As in `sample_logits`.

    Raises:
        ValueError: On bad x, samples < 1 or bad masks, and where the network answers NaN.
    """

    def mean(member: Attached, parts: Iterable[Tensor], count: int) -> Tensor:
        wide = torch.float32 if device_of(member).type == "mps" else torch.float64
        total = sum(member.likelihood.mean(one).to(wide) * len(one) for one in parts)
        return torch.as_tensor(total / count).float()[None]

    return torch.cat(answers(net, x, samples, mean, **how)).mean(0)


def sample_logits(
    net: Attached | Ensemble, x: Any, samples: int = 20, *,
    masks: str | Sequence[Tensor] = "own", seed: int = 0, memory: int | None = None,
) -> Tensor:  # fmt: skip
    """Logits of every input under every mask, (S, B, K).

    For an ensemble of M members that is ⌈S/M⌉ masks each, of its own, in turn: row s·M + m is mask
    s of member m. A method that has `count` masks runs each once, and row s is mask s mod `count`.

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch of tensors or NumPy arrays (the answer to arrays is a tensor on the CPU), or a
            DataLoader that does not shuffle or other iterable of batches, of x or of (x, …), whose
            rows are answered as if they came in one batch. Lengths and sizes may vary where model
            and sites allow it.
        samples: S.
        masks: "own", each row has masks of its own, drawn by its place and by how many rows share
            its block (of 256): the same input further down has others. "shared", the rows of a call
            share their random numbers, so that an answer depends on its input alone (where the
            policy does not read the input, they share the mask). Or given ones, one per site, each
            (S, B, C) or (S, B, T, C).
        seed: Of the masks.
        memory: Bytes that the largest activation of a folded pass may take, 512 MiB by default,
            2 MiB on a CPU; it changes the speed, not the answer. Where the GPU runs out, half as
            many masks are folded, with a warning.

    Raises:
        ValueError: On bad x, samples < 1 or bad masks, and where the network answers NaN.
    """

    def join(member: Attached, parts: Iterable[Tensor], count: int) -> Tensor:
        return torch.cat(list(parts))

    each = answers(net, x, samples, join, masks=masks, seed=seed, memory=memory)
    if isinstance(masks, str | None):  # the `count` masks of a method in turn, (S', B, K)
        turns = torch.arange(-(-samples // len(each)))
        each = [out if len(out) == len(turns) else out[turns % len(out)] for out in each]
    # (S', M, B, K) -> (S'·M, B, K)
    return each[0] if len(each) == 1 else torch.stack(each, 1).flatten(0, 1)


def answers(net: Any, x: Any, samples: int, reduce: Reduce, *, seed=0, **how) -> list[Tensor]:
    """The answer of each member of an ensemble to its share of the masks, which are no other
    member's, or of the one network."""
    drawn = isinstance(how.get("masks"), str | None)
    members = net.nets if drawn and isinstance(net, Ensemble) else [net]
    check_counts(samples=samples)
    share = -(-samples // len(members))
    seeds = [seed, *(derive(seed, "member", k) for k in range(1, len(members)))]
    turns = zip(members, seeds, strict=True)
    return [_answer(member, x, share, reduce, seed=own, **how) for member, own in turns]


@torch.no_grad()
def _answer(
    net: Any, x: Any, samples: int, reduce: Reduce, *, seed: int, masks: Any = "own", memory=None
) -> Tensor:
    """`reduce` of each block's logits, parts (s, b, K) of S masks, joined: (…, B, K)."""
    check_net(net)
    given: Any = None if isinstance(masks, str | None) else masks
    if given is None and masks not in ("own", "shared", None):
        raise ValueError(f"masks={masks!r} is none of 'own', 'shared' or a list of masks")
    if given is not None and is_loader(x):
        raise ValueError("masks are given for one batch: pass x as one, not a loader")
    samples = len(given[0]) if given is not None and len(given) else net.method.count or samples
    device, back, found = device_of(net), None, []
    memory = (MEMORY_CPU if device.type == "cpu" else MEMORY) if memory is None else memory
    check_counts(samples=samples, memory=memory)
    step = block_rows(net, samples)
    if is_loader(x):  # whose own code runs outside the lock
        batches, turn = (check_x(net, inputs(net, item)[0]) for item in x), contextlib.nullcontext()
    else:
        batches, turn = [check_x(net, x)], net.exclusive()
        if given is not None:
            given = check_masks(net, given, (samples, rows(batches[0])))
    with turn:
        for block, part in enumerate(in_blocks(batches, step)):
            back, part = back or leaves(part)[0].device, to_device(part, device)
            if given is None:
                draws = _draws(net, samples, part, seed, block, masks == "shared", memory)
            else:
                own = [mask[:, block * step :][:, : rows(part)].to(device) for mask in given]
                draws = [(samples, {"masks": own, "source": "given"})]
            with net.exclusive(), eval_mode(net):
                found.append(reduce(net, _block_logits(net, part, draws, memory), samples))
    if not found:
        raise ValueError("the loader yields no batch: pass at least one row")
    answer = torch.cat(found, 1).to(back)
    check_finite(net, answer)
    return answer


def _block_logits(net: Attached, x: Any, draws: Iterable, memory: int) -> Iterator[Tensor]:
    """One block of inputs under each of its masks, in parts (s, b, K): as many samples folded at a
    time as memory allows."""
    prefix, fold = Prefix(net, x), fold_of(net, x, memory)
    for samples, drawn in draws:
        done = 0
        while done < samples:
            count = min(fold, samples - done)
            now = tree_map(lambda t: t.flatten(0, 1), row_slice(drawn, done, count))  # (s·b, ...)
            try:
                with prefix.replay(count):
                    out = masked_pass(net, repeat_rows(x, count), **now)
            except torch.cuda.OutOfMemoryError:
                if count == 1:
                    raise
                fold = count // 2
                warnings.warn(f"out of memory: folding {fold} masks at a time", stacklevel=2)
                continue
            yield _spoilt(out).unflatten(0, (count, rows(x)))  # (S·b, K) -> (S, b, K)
            done += count


def _spoilt(out: Pass) -> Tensor:
    """The logits of a pass; NaN where a policy was not finite, of which its mask says nothing."""
    bad = [~p.isfinite().all() for p in (*out.q_logits, *out.p_logits) if p is not None]
    return out.logits.masked_fill(torch.stack(bad).any(), torch.nan) if bad else out.logits


def _draws(
    net: Attached, samples: int, x: Any, seed: int, block: int, shared: bool, memory: int
) -> Iterator[tuple[int, dict]]:
    """(s, noise) of one block, tensors (s, b, ...): the same for every block if masks are shared.

    A CPU draws numbers one after the other, so it draws no more at a time than one pass folds; a
    GPU, whose numbers depend on how many it draws, draws those of the block at once.
    """
    shared, batch, device = shared or net.method.shared, rows(x), device_of(net)
    gen = generator(seed, "predict", 0 if shared else block, device=device)
    most = min(samples, fold_of(net, x, memory)) if device.type == "cpu" else samples
    drawn = 1 if shared else batch

    def shape(t: Tensor) -> Tensor:
        return t.unflatten(0, (-1, drawn)).expand(-1, batch, *t.shape[1:])  # -> (s, b, ...)

    for first in range(0, samples, most):
        count = min(most, samples - first)
        noise = draw_noise(net.sites, count * drawn, gen)
        if all_masks := net.method.count:  # sample s takes mask s
            turns = (torch.arange(first, first + count, device=device) + 0.5) / all_masks
            noise = noise._replace(explore=turns.repeat_interleave(drawn).unsqueeze(1))
        yield count, {"noise": tree_map(shape, noise), "source": "test"}
