"""Several yes or no answers per row: certain ones, and answers that are right to a degree."""

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor

from gfo.core.likelihood import Likelihood, Shape, per_example, wide


class Bernoulli(Likelihood):
    """K yes or no answers: logits (B, K), or (B, K, …), and y of 0 and 1 as floats.

    Under one mask they are independent; the predictive is their joint distribution, a mixture over
    masks, in which they are not.
    """

    wants = "0 and 1 as floats"

    def distribution(self, outputs: Tensor) -> td.Distribution:
        strict = self.normalised  # degrees are no outcome of a coin
        coins = td.Bernoulli(logits=wide(outputs), validate_args=strict)
        return td.Independent(coins, outputs.dim() - 1, validate_args=strict)

    def log_lik(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Σ_k y_k log σ(a_k) + (1 − y_k) log(1 − σ(a_k)), shape (B,), in nats."""
        a = wide(outputs)
        return -per_example(F.binary_cross_entropy_with_logits(a, y.to(a), reduction="none"))

    def probs(self, logits: Tensor) -> Tensor:
        """The probability of each yes, in the shape of the logits."""
        return wide(logits).sigmoid()

    def expected(self, outputs: Tensor) -> Tensor:
        """The probability of each yes."""
        return self.probs(outputs)

    def entropy(self, probs: Tensor) -> Tensor:
        return (torch.special.entr(probs) + torch.special.entr(1 - probs)).flatten(1).sum(1)

    def answer(self, probs: Tensor) -> Tensor:
        return (probs >= 0.5).float()

    def check(self, y: Tensor, batch: int, outputs: Shape) -> None:
        super().check(y, batch, outputs)
        if not ((y == 0) | (y == 1)).all():
            cure = "gfo.SoftTargets() takes degrees"
            raise ValueError(f"y runs {y.min():g}…{y.max():g}, needs 0 and 1: {cure}")


class SoftTargets(Bernoulli):
    """K answers, each right to a degree: logits (B, K), targets y (B, K) in [0, 1].

    Σ_k y_k log σ(a_k) + (1 − y_k) log(1 − σ(a_k)), the binary cross-entropy summed over answers
    with which networks for VQA v2 are trained (Teney et al., 2018). For targets of 0 and 1 it is
    the log-likelihood of K coins; `probs` are K such probabilities and do not sum to 1.
    """

    wants = "soft targets"
    normalised = False

    def valid_nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self.predictive_nll(self.mean(outputs), y)

    def predictive_nll(self, probs: Tensor, y: Tensor) -> Tensor:
        """The same cross-entropy of the mask-averaged probabilities, shape (B,), in nats."""
        tiny = torch.finfo(probs.dtype).tiny  # of 1 − p too, which float32 rounds to 0
        yes, no = probs.clamp_min(tiny).log(), (1 - probs).clamp_min(tiny).log()
        return -per_example(y * yes + (1 - y) * no)

    def check(self, y: Tensor, batch: int, outputs: Shape) -> None:
        if y.is_floating_point() and not ((y >= 0) & (y <= 1)).all():  # not so for NaN either
            raise ValueError(f"soft targets run {y.min():g}…{y.max():g}, need to lie in [0, 1]")
        Likelihood.check(self, y, batch, outputs)
