"""log p(y | x) with the masks summed out: by masks of p, and by masks of q that are weighed.

Both estimate a mean by S masks and take its logarithm, so that both are below log p(y | x) in
expectation (Jensen), the further the fewer masks find y.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import device_of, repeat_rows, row_slice, rows, to_device
from gfo.core.checks import check_batch, check_counts, check_finite, check_net
from gfo.core.masked_pass import drawn_pass
from gfo.core.noise import derive
from gfo.core.predict import sample_logits

COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Examples per block, and masks of each that are drawn at once: outputs of 392 bits take 8 MB.
ROWS, FOLD = 250, 20


def log_predictive_curve(
    net: Attached, x: Any, y: Any, counts: Sequence[int] = COUNTS, *, seed: int = 0
) -> Tensor:
    """log (1/S) Σ_s p(y | x, z_s) over masks of the test-time policy, for several S.

    Each S takes the first S of the same masks. Memory does not grow with masks times outputs.

    Args:
        net: What `attach` returned.
        x: A batch.
        y: Its labels.
        counts: The numbers S of masks, rising.
        seed: Of the masks.

    Returns:
        (len(counts), B), in nats, float64.
    """
    check_net(net)
    check_counts(counts=min(counts))
    most = net.method.count or max(counts)
    places = torch.tensor(counts).clamp_max(most) - 1

    def draw(xs: Any, ys: Tensor, count: int, key: int) -> Tensor:
        outputs = sample_logits(net, xs, count, seed=key)  # (s, b, K, …)
        return torch.stack([net.likelihood.distribution(one).log_prob(ys) for one in outputs])

    found = [each.logcumsumexp(0)[places] for each in _blocks(net, x, y, most, draw, seed)]
    return torch.cat(found, 1) - (places + 1).log().unsqueeze(1)


class Weighed(NamedTuple):
    """What masks of q say of log p(y | x).

    Attributes:
        log_prob: log (1/S) Σ_s w_s, (B,), in nats.
        ess: Effective sample size (Σ w)² / Σ w² of the weights, (B,), from 1 to S.
    """

    log_prob: Tensor
    ess: Tensor


def importance_log_predictive(
    net: Attached, x: Any, y: Any, samples: int = 100, *, seed: int = 0
) -> Weighed:
    """log p(y | x) from masks of q(z | x, y), each weighing w = p(y | x, z) p(z | x) / q(z | x, y).

    The mean of w is p(y | x) whatever q is, of a q that reads y with far fewer masks.

    Args:
        net: What `attach` returned; its method predicts by p and has a q.
        x: A batch.
        y: Its labels.
        samples: S, masks per example.
        seed: Of the masks.

    Raises:
        ValueError: For a method that has no q beside the p that it predicts by.
    """
    check_net(net)
    check_counts(samples=samples)
    if net.method.q is None or net.method.test != "p":
        raise ValueError(f"{net.method.name} has no q beside its p: use log_predictive_curve")

    def draw(xs: Any, ys: Tensor, count: int, key: int) -> Tensor:
        xs, ys = repeat_rows((xs, ys), count)
        out = drawn_pass(net, xs, ys, "q", key)
        log_lik = net.likelihood.distribution(out.logits).log_prob(ys)  # without class weights
        return (log_lik + out.log_p - out.log_q).unflatten(0, (count, -1))

    found = []
    for log_w in _blocks(net, x, y, samples, draw, seed):
        total = log_w.logsumexp(0)
        ess = (2 * total - (2 * log_w).logsumexp(0)).exp()
        found.append(torch.stack([total - math.log(samples), ess]))
    return Weighed(*torch.cat(found, 1))


@torch.no_grad()  # a likelihood may have parameters
def _blocks(
    net: Attached, x: Any, y: Any, samples: int, draw: Callable[..., Tensor], seed: int
) -> Iterator[Tensor]:
    """What `draw(x, y, count, key)` says of S masks of the examples, in blocks (S, b), float64."""
    x, y = check_batch(net, x, y)
    for block in range(0, rows(x), ROWS):
        xs, ys = to_device(row_slice((x, y), block, ROWS), device_of(net))
        fold = net.method.count or FOLD  # a method's `count` masks are gone through at once
        found = [
            draw(xs, ys, min(fold, samples - start), derive(seed, "marginal", block, start))
            for start in range(0, samples, fold)
        ]
        joined = torch.cat(found).double().cpu()
        check_finite(net, joined)
        yield joined
