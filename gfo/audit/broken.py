"""Specimens that are wrong on purpose, and figures that tell.

They make the mistakes that a training curve does not show. Each is one change to the correct
method.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gfo.audit import exact
from gfo.audit.exact_audit import truth
from gfo.core.attached import Attached
from gfo.core.batch import device_of, repeat_rows, row_slice, rows, to_device
from gfo.core.likelihood import Categorical
from gfo.core.masked_pass import drawn_pass, without_gradient
from gfo.core.objectives import log_bernoulli, total
from gfo.core.policies import FixedPolicy
from gfo.core.predict import predict
from gfo.methods import GFlowOut, IDGFlowOut


class MaskBlind(GFlowOut):
    """log P_F = Σ log(keep-probability), whatever the mask: q is scored on no mask at all."""

    def terms(self, out, log_reward):
        keep = [F.logsigmoid(a).flatten(1).sum(1).expand(len(out.log_lik)) for a in out.q_logits]
        blind = [a.unflatten(0, (self.masks, -1)) for a in keep]  # (K·B,) -> (K, B)
        return super().terms(out, log_reward)._replace(log_q=blind)


class BroadcastLogZ(GFlowOut):
    """log Z (B, 1) against log q (B,): every example's log Z is held to every other's residual."""

    def terms(self, out, log_reward):
        t = super().terms(out, log_reward)
        log_z, log_q = t.log_z[:, :, None], [a[:, None] for a in t.log_q]  # (K, B, 1), (K, 1, B)
        return t._replace(log_z=log_z, log_q=log_q, log_reward=t.log_reward[:, None])


class Collapsed(GFlowOut):
    """R to the power 50: q keeps little but the best mask."""

    def terms(self, out, log_reward):
        return super().terms(out, 50 * log_reward)


class NoData(IDGFlowOut):
    """N = 0 in the reward of eq (11): the posterior is asked for, the prior is learned."""

    def loss(self, batch_pass, n):
        beta, self.beta = self.beta, 0.0
        try:
            return super().loss(batch_pass, n)
        finally:
            self.beta = beta


class TemperedPrior(GFlowOut):
    """p learns the masks drawn from q~ (temperature 2) as if they came from q."""

    prior_objective: str = "literal"


# A figure beyond its limit says that something is wrong. Over 18 toys, correct methods and the
# specimens that it sees: kl_left 0–0.65 and 1–16, log_z_left 0–0.6 and 0.99–3, label_leak 0 and
# 0.02–0.17, prior_aim below −1.4 and 0.02–0.08.
LIMITS = {"kl_left": 0.8, "log_z_left": 0.7, "label_leak": 0.01, "prior_aim": 0.0}


def examine(
    net: Attached, x: Any, y: Tensor, predictor: Callable | None = None
) -> dict[str, float]:
    """The figures of `LIMITS`, over every mask, means over examples.

    Args:
        net: A network with at most 16 mask bits.
        x: A batch.
        y: Its labels.
        predictor: Whose label_leak is taken, `honest_predict` by default.

    Returns:
        Where p is fixed, "kl_left", KL(q ‖ posterior) as a share of KL(p ‖ posterior), 1 if
        training moved q nowhere; and "log_z_left", ``|log Z − log evidence|`` as a share of what it
        is if log Z is one number for all examples, their mean log evidence (for ID-GFlowOut: 0,
        where it starts). Where p is learned, "prior_aim", KL(q ‖ p) − KL(q~ ‖ p) in nats; above 0,
        p is nearer to the training policy q~ than to q. Always "label_leak".
    """
    log_q, log_reward, log_z = truth(net, x, y)
    evidence = log_reward.logsumexp(1)
    log_post = log_reward - evidence[:, None]
    log_p, tempered = policies(net, x, y)
    found: dict[str, Any] = {"label_leak": label_leak(predictor or honest_predict, net, x, y)}
    if not isinstance(net.method.p, FixedPolicy):
        found["prior_aim"] = (exact.kl(log_q, log_p) - exact.kl(tempered, log_p)).mean()
    else:
        left, start = (exact.kl(a[: len(log_q)], log_post).mean() for a in (log_q, log_p))
        found["kl_left"] = left / start
        if log_z is not None:
            start = 0.0 if net.method.shared else evidence.mean()
            found["log_z_left"] = (log_z - evidence).abs().mean() / (start - evidence).abs().mean()
    return {name: float(value) for name, value in found.items()}


def caught(found: dict[str, float]) -> list[str]:
    """The figures of `examine` that lie beyond their limit."""
    return [name for name, value in found.items() if value > LIMITS[name]]


def policies(net: Attached, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, log q~) of all masks, (B, 2^M): the prior and the training policy."""
    masks = exact.all_masks([site.width for site in net.sites])
    method, log_p, log_tempered = net.method, [], []
    x, y, masks = to_device((x, y, masks), device_of(net))
    for b in range(rows(x)):
        many = repeat_rows(row_slice((x, y), b, 1), len(masks[0]))
        out = without_gradient(net, *many, masks=masks)
        layers = []
        for logits, mask in zip(out.q_logits, masks, strict=True):
            layer = log_bernoulli(logits / method.temperature, mask).exp()
            layers.append((1 - method.random) * layer + method.random * 0.5 ** mask.shape[1])
        log_p.append(out.log_p)
        log_tempered.append(total(layer.log() for layer in layers))
    return torch.stack(log_p).double(), torch.stack(log_tempered).double()


def leaky_predict(net: Attached, x: Any, y: Tensor, samples: int = 20, seed: int = 0) -> Tensor:
    """A predictive (B, K) whose masks come from q(z|x,y) at test time: it has seen the label.

    Args:
        net: The network.
        x: A batch.
        y: Its labels, which it should not read.
        samples: How many masks.
        seed: Of the masks.
    """
    probs, (x, y) = [], to_device((x, y), device_of(net))
    for index in range(samples):
        out = drawn_pass(net, x, y, "q", seed, "leak", index)
        probs.append(net.likelihood.expected(out.logits))
    return total(probs) / samples


def label_leak(predictor: Callable[[Attached, Any, Tensor], Tensor], net: Attached, x, y) -> float:
    """Mean total variation between the predictive given y and given y + 1 (mod K).

    It is 0 unless the label leaks. Where y is no label, the other y is another example's.

    Args:
        predictor: f(net, x, y) -> (B, K); the honest one ignores y.
        net: The network.
        x: A batch.
        y: Its labels.
    """
    label = isinstance(net.likelihood, Categorical)
    other = (y + 1) % net.likelihood.outputs[0] if label else y.roll(1, 0)
    given, other = predictor(net, x, y), predictor(net, x, other)
    return float(0.5 * (given - other).abs().sum(1).mean())


def honest_predict(net: Attached, x: Any, y: Tensor) -> Tensor:
    """`gfo.predict`, which takes no label."""
    return predict(net, x)
