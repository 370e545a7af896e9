"""Temperature scaling: one number, fitted on validation data, that makes probabilities honest.

It divides the logarithm of the *averaged* predictive, not the logits of each mask. Averaging over
masks flattens a predictive, so that logits tuned mask by mask end too flat: calibrate after pooling
(Rahaman & Thiery, 2021; of one network: Guo et al., 2017). Where an example has several answers,
each answer's own probabilities are scaled, not their joint distribution over masks.
"""

import math
from typing import Any

import scipy
import torch
from torch import Tensor

from gfo.evaluate.metrics import per_answer

BOUNDS = math.log(0.01), math.log(100)


class Temperature:
    """p(k | x) ∝ (mean over masks of p(k | x, z))^{1/T}, with the T of least validation NLL.

    The NLL is convex in β = 1/T: −β log p_y is linear and log Σ_k p_k^β a log-sum-exp of linear
    functions. So it has one valley, and bounded search finds its floor. T = 1 is a candidate, so
    that the validation NLL never gets worse. Where each label is the likeliest answer it falls for
    T → 0 without end, and T ends near 1/100: take data that the network was not trained on.

    Call it on what `gfo.predict` returns, (B, K, …), for probabilities of the same shape.

    Args:
        probs: Of validation examples, as `gfo.predict` gives them: of classes, (B, K) or (B, K, …),
            or of yes, (B, K, …).
        y: Their labels, (B,) or (B, …); or 0 and 1 as floats, (B, K, …).

    Attributes:
        value: T; above 1 the network was too sure of itself, below 1 not sure enough.
        gain: What T takes off the validation NLL, in nats per answer; elsewhere it is less as
            a rule, maybe a loss, and measured by `gfo.report(…, scale=)`.

    Raises:
        ValueError: For what are no such probabilities and labels: means of real numbers, say.
    """

    def __init__(self, probs: Tensor, y: Tensor):
        rows, labels = per_answer(probs, y)
        log_p = _log(rows).double()

        def nll(log_t: float) -> float:
            return float(torch.nn.functional.cross_entropy(log_p / math.exp(log_t), labels))

        found: Any = scipy.optimize.minimize_scalar(nll, bounds=BOUNDS, method="bounded")
        best = min((0.0, float(found.x)), key=lambda t: round(nll(t), 12))  # a tie is for T = 1
        self.value, self.gain = math.exp(best), nll(0.0) - nll(best)
        self.coins = torch.as_tensor(y).is_floating_point()

    def __call__(self, probs: Tensor) -> Tensor:
        # which refuses others
        per_answer(probs, torch.zeros_like(probs) if self.coins else probs.argmax(1))
        if self.coins:
            return torch.sigmoid((_log(probs) - _log(1 - probs)) / self.value)
        return (_log(probs) / self.value).softmax(1)


def _log(probs: Tensor) -> Tensor:
    """log p; of what its format rounds to 0 that of its smallest normal number."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
