"""How far the learned masks have moved, in nats and in keep-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attach import Attached
from .masked_pass import Pass, without_gradient
from .noise import generator
from .objectives import CERTAIN, kl_bernoulli
from .predict import noise_for
from .tree import device_of, rows, to_device


def passes(net: Attached, x: Any, y: Tensor, source: str, samples: int, seed: int):
    """`samples` masked passes with prefixes drawn by "q", "p" or "test"; both policies scored. What
    they saw comes back to the device of y."""
    back = y.device
    x, y = to_device((x, y), device_of(net))
    for index in range(samples):
        gen = generator(seed, "masks", index, device=device_of(net))
        noise = noise_for(net, rows(x), gen)
        out = without_gradient(net, x, y, noise=noise, source=source)
        if source == "test":  # that pass runs the leading policy only and leaves y unread
            out = without_gradient(net, x, y, masks=out.masks)
        yield Pass(*to_device(list(out), back))


def moved(
    net: Attached, x: Any, y: Tensor, *, keep: float = 0.5, samples: int = 5, seed: int = 0
) -> dict[str, list[float]]:
    """How far q and p are from independent Bernoulli(keep) masks and from each other.

    Returns, per site, mean nats an example: "p_moved" KL(p ‖ Bernoulli), "q_moved"
    KL(q ‖ Bernoulli), "q_from_p" KL(q ‖ p). Each layer's divergence is in closed form, averaged
    over `samples` prefixes drawn from its left argument. Entries a method has no policy for are
    left out.
    """
    found: dict[str, list[float]] = {}

    def uniform(logits: Tensor) -> Tensor:
        """Logits of the Bernoulli, in the shape of others; padding moves nowhere."""
        fixed = torch.logit(torch.tensor(keep)).to(logits)
        return torch.where(logits == CERTAIN, logits, fixed)

    def mean(pairs) -> list[float]:
        by_pass = [[float(kl_bernoulli(a, b).mean()) for a, b in layers] for layers in pairs]
        return torch.tensor(by_pass).mean(0).tolist()

    if net.method.p is not None and net.method.test == "p":
        runs = list(passes(net, x, y, "test", samples, seed))
        found["p_moved"] = mean([[(p, uniform(p)) for p in r.p_logits] for r in runs])
    if net.method.q is not None:
        runs = list(passes(net, x, y, "q", samples, seed))
        found["q_moved"] = mean([[(q, uniform(q)) for q in r.q_logits] for r in runs])
        found["q_from_p"] = mean([list(zip(r.q_logits, r.p_logits, strict=True)) for r in runs])
    return found


def keep_probabilities(
    net: Attached, x: Any, y: Tensor, *, samples: int = 5, seed: int = 0
) -> dict[str, list[Tensor]]:
    """Keep-probability of every unit for every example, averaged over sampled prefixes.

    Returns, where the method has them, "q" (prefixes and probabilities from q, label given) and
    "p" (probabilities from p, prefixes from whichever of the two tests): one tensor a site, (B, C)
    or (B, T, C).
    """
    found = {}
    for name, source in (("q", "q"), ("p", "test")):
        if getattr(net.method, name) is None:
            continue
        runs = list(passes(net, x, y, source, samples, seed))
        layers = zip(*(getattr(r, f"{name}_logits") for r in runs), strict=True)
        found[name] = [
            torch.stack([a.sigmoid() for a in layer]).mean(0).expand(rows(x), *layer[0].shape[1:])
            for layer in layers
        ]
    return found
