"""Views of the masked pass without gradient: sample masks, score them, predict.

Inputs go to the device of the network, results come back to the device of the inputs.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, leaves, repeat_rows, row_slice, rows, to_device
from gfo.core.checks import check_counts, check_masks, check_net, check_x, check_y
from gfo.core.ensemble import Ensemble
from gfo.core.masked_pass import masked_pass, noise_for, without_gradient
from gfo.core.noise import Noise, draw_noise, generator
from gfo.core.prefix import Prefix
from gfo.core.sites import eval_mode

# Inputs per block: noise is drawn block by block, so that it cannot depend on chunking. Fewer
# where the noise of a block would pass these bytes.
ROWS, NOISE = 256, 2**30
# Bytes of the largest activation that one folded pass may take. A GPU wants many rows at once; on a
# CPU larger tensors leave the cache, and their memory goes back to the system after every pass.
MEMORY, MEMORY_CPU = 512 * 2**20, 4 * 2**20


class Score(NamedTuple):
    """Log-probabilities of given masks, each (B,), in nats; None where a method has none.

    Attributes:
        log_q: log q(z | x, y), of z under the posterior policy.
        log_p: log p(z | x), of z under the prior.
        log_z: log Z(x, y), which at the optimum is log p(y | x).
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
        x: A batch.
        y: Its labels, or None.
        seed: Of the masks; None takes torch's global generator.

    Returns:
        One 0/1 tensor per site in execution order, (B, C) or (B, T, C).

    Raises:
        ValueError: On bad x or y.
    """
    check_net(net)
    check_x(net, x)
    if y is not None:
        check_y(net, x, y)
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    back = leaves(x)[0].device
    x, y = to_device((x, y), device_of(net))
    noise = noise_for(net, rows(x), generator(seed, "sample", device=device_of(net)))
    out = without_gradient(net, x, y, noise=noise, source="test" if y is None else "q")
    return [mask.expand(rows(x), *mask.shape[1:]).clone().to(back) for mask in out.masks]


def score(net: Attached, x: Any, y: Tensor, masks: Sequence[Tensor]) -> Score:
    """Log-probabilities of given masks.

    log R(z) of the paper is log_lik + log_p.

    Args:
        net: What `attach` returned.
        x: A batch.
        y: Its labels.
        masks: One per site, each (B, C) or (B, T, C), of 0 and 1.

    Returns:
        `Score(log_q, log_p, log_z, log_lik)`, each (B,), in nats; None where a method has none.

    Raises:
        ValueError: On bad x, y or masks.
    """
    check_net(net)
    check_x(net, x)
    check_y(net, x, y)
    masks = check_masks(net, masks, (rows(x),))
    back = leaves(x)[0].device
    x, y, masks = to_device((x, y, masks), device_of(net))
    out = without_gradient(net, x, y, masks=masks)
    parts = (out.log_q, out.log_p, out.log_z, out.log_lik)
    return Score._make(t if t is None else t.expand(rows(x)).clone().to(back) for t in parts)


def predict(net: Attached, x: Any, samples: int = 20, **how) -> Tensor:
    """Mean class probabilities over masks of the test-time policy, (B, K).

    The same call gives the same answer: masks come from `seed` (0 by default).

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch.
        samples: How many masks.
        **how: As in `sample_logits`.

    Raises:
        ValueError: On bad x, samples < 1 or bad masks.
    """
    logits = sample_logits(net, x, samples, **how)
    return net.likelihood.probs(logits).mean(0)


@torch.no_grad()
def sample_logits(
    net: Attached,
    x: Any,
    samples: int = 20,
    *,
    masks: Sequence[Tensor] | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> Tensor:
    """Logits of every input under every mask, (S, B, K).

    For an ensemble of M members that is ⌈S/M⌉ masks each, in turn: row s·M + m is mask s of
    member m.

    Args:
        net: What `attach` returned, or an ensemble.
        x: A batch.
        samples: S, how many masks.
        masks: Given ones instead, one per site, each (S, B, C) or (S, B, T, C).
        seed: Of the masks.
        memory: Bytes that the largest activation of a folded pass may take, 512 MiB by default,
            4 MiB on a CPU; it changes the speed, not the answer. Where the GPU runs out, half as
            many masks are folded, with a warning.

    Raises:
        ValueError: On bad x, samples < 1 or bad masks.
    """
    check_counts(samples=samples)
    if isinstance(net, Ensemble) and masks is None:
        share = -(-samples // len(net.nets))
        parts = [sample_logits(member, x, share, seed=seed, memory=memory) for member in net.nets]
        return torch.stack(parts, 1).flatten(0, 1)  # (S', M, B, K) -> (S'·M, B, K)
    check_net(net)
    check_x(net, x)
    if masks is not None:
        samples = len(masks[0]) if len(masks) else samples
        check_counts(samples=samples)
        masks = check_masks(net, masks, (samples, rows(x)))
    elif samples > 1 and not net.method.stochastic:
        one = sample_logits(net, x, 1, seed=seed, memory=memory)
        return one.expand(samples, -1, -1)  # (1, B, K) -> (S, B, K)
    device, blocks = device_of(net), []
    memory = memory or (MEMORY_CPU if device.type == "cpu" else MEMORY)
    step = block_rows(net, samples)
    with eval_mode(net):
        for block, start in enumerate(range(0, rows(x), step)):
            part = to_device(row_slice(x, start, step), device)
            if masks is not None:
                given = to_device([m[:, start : start + step] for m in masks], device)
                draws: dict[str, Any] = {"masks": given}
            else:
                draws = {"noise": _test_noise(net, samples, rows(part), seed, block)}
            blocks.append(_block_logits(net, part, samples, draws, memory))
    return torch.cat(blocks, 1).to(leaves(x)[0].device)


def block_rows(net: Attached, samples: int) -> int:
    """How many inputs share a block of a prediction from so many masks."""
    bits = sum(site.width * (site.tokens or 1) for site in net.sites)
    return max(1, min(ROWS, NOISE // (4 * samples * bits)))


def _block_logits(net: Attached, x: Any, samples: int, draws: dict, memory: int) -> Tensor:
    """(S, b, K): one block of inputs, as many samples folded at a time as memory allows."""
    prefix = Prefix(net, x)
    source = "given" if "masks" in draws else "test"
    fold = max(1, memory // (net.spec.row_bytes * rows(x)))
    parts, done = [], 0
    while done < samples:
        count = min(fold, samples - done)
        now = {key: _fold(value, done, count) for key, value in draws.items()}
        try:
            with prefix.replay(count):
                out = masked_pass(net, repeat_rows(x, count), source=source, **now)
        except torch.cuda.OutOfMemoryError:
            if count == 1:
                raise
            fold = count // 2
            warnings.warn(f"out of memory: folding {fold} masks at a time instead", stacklevel=2)
            continue
        parts.append(out.logits.unflatten(0, (count, rows(x))))  # (S·b, K) -> (S, b, K)
        done += count
    return torch.cat(parts)


def _fold(values: Any, first: int, count: int) -> Any:
    """Samples first … first+count of tensors (S, b, ...), folded to (count·b, ...)."""
    if isinstance(values, Noise):
        return Noise(_fold(values.u, first, count), _fold([values.explore], first, count)[0])
    return [v[first : first + count].flatten(0, 1) for v in values]  # (S, b, ...) -> (S·b, ...)


def _test_noise(net: Attached, samples: int, batch: int, seed: int, block: int) -> Noise:
    """Noise of one block, tensors (S, b, ...): the same for every block if the mask is shared."""
    shared = net.method.shared
    gen = generator(seed, "predict", 0 if shared else block, device=device_of(net))
    flat = draw_noise(net.sites, samples * (1 if shared else batch), gen)

    def shape(t: Tensor) -> Tensor:
        t = t.unflatten(0, (samples, -1))  # (S·b, ...) -> (S, b, ...)
        return t.expand(samples, batch, *t.shape[2:])

    return Noise([shape(u) for u in flat.u], shape(flat.explore))
