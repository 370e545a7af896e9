"""ARM: an unbiased gradient through 0/1 masks from antithetic noise (Yin & Zhou, 2019)."""

from collections.abc import Callable

from torch import Tensor

from gfo.core.masked_pass import BatchPass, Pass
from gfo.core.objectives import total


def arm(batch_pass: BatchPass, out: Pass, cost: Callable[[Pass], Tensor]) -> Tensor:
    """A surrogate of value 0 whose gradient is an unbiased estimate of ∇ E_q[cost], (B,).

    One layer (theorem 1): ∇_a E[f(z)] = E_u[(f(z') − f(z)) (u − ½)], z' = 1[1 − u < σ(a)]. In a
    hierarchy f at layer l is the expected cost given z_1 … z_l. The true pass estimates it for
    z_l; a pseudo-pass that keeps z_1 … z_{l−1}, imposes z'_l and draws the later layers does for
    z'_l. Both may draw these from the same noise, which is independent of u_l. Pseudo-passes leave
    modules in their modes: BatchNorm by running statistics in one pass and by the batch in the
    other would compare two functions.

    Args:
        batch_pass: The batch's `gfo.core.masked_pass.BatchPass`. Any policy q will do whose bits of
            a layer are independent.
        out: Its true pass, batch_pass(source="q"), masks z = 1[u < σ(a)].
        cost: A Pass to (B,). The gradient of `cost` in q at fixed masks is not included: add
            cost(out), unless that has expectation 0.
    """
    true, parts = cost(out).detach(), []
    for layer, (logits, u) in enumerate(zip(out.q_logits, batch_pass.noise().u, strict=True)):
        u = u[:, : logits.shape[1]]  # a batch may have fewer tokens than the example
        pseudo = (1 - u < logits.float().sigmoid()).float()
        masks = [*out.masks[:layer], pseudo, *[None] * (len(out.masks) - layer - 1)]
        gap = cost(batch_pass(source="q", masks=masks, forward_only=True)) - true  # (B,)
        parts.append(gap * ((u - 0.5) * logits).flatten(1).sum(1))  # (B, ...) -> (B,)
    surrogate = total(parts)
    return surrogate - surrogate.detach()
