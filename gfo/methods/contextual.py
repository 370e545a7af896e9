"""Contextual dropout: keep-probabilities from the input, by variational inference."""

from torch import Tensor

from gfo.core.masked_pass import Pass
from gfo.core.objectives import kl_bernoulli, total
from gfo.core.policies import LayerwisePolicy, LearnedPolicy
from gfo.core.registry import METHODS
from gfo.methods.arm import arm
from gfo.methods.base import Loss, Method


@METHODS.register("contextual")
class ContextualDropout(Method):
    """Contextual dropout with Bernoulli masks (Fan et al., 2021, section 2).

    q(z_l | h'_l) is a small network per site that never reads the label, so it draws the masks at
    test time too; p(z_l) is one learned keep-probability per layer. Minimised is the negative ELBO
    E_q[−log p(y | x, z)] + KL(q ‖ p), the KL per layer in closed form along sampled prefixes. q
    learns through the 0/1 masks by ARM (`gfo.methods.arm`): one true pass and a forward-only
    pseudo-pass per site. Loss part "nll" moves the backbone, "prior" q and p, "arm" q; the last has
    value 0.

    Args:
        keep: Where q and p start.
        beta: Exponent of the likelihood for q (the paper: 1, the ELBO).
        rescale: As in `Method`.
        hidden: Width of every generator.
    """

    name = "contextual"
    test = "q"
    own_posterior = True
    keep: float = 0.5
    beta: float = 1.0
    rescale: bool = False
    hidden: int = 32

    def make(self, spec):
        sites, classes = spec.sites, spec.classes
        self.q = LayerwisePolicy(sites, classes, ("h",), hidden=self.hidden, keep=self.keep)
        self.p = LearnedPolicy(sites, self.keep)

    def loss(self, batch_pass, n):
        out = batch_pass(source="q")
        parts = {"nll": -out.log_lik.mean(), "prior": layerwise_kl(out).mean()}
        return Loss(parts | {"arm": arm(batch_pass, out, self.cost).mean()}, {})

    def cost(self, out: Pass) -> Tensor:
        """The negative ELBO of one sampled mask, (B,), in nats."""
        return layerwise_kl(out) - self.beta * out.log_lik


def layerwise_kl(out: Pass) -> Tensor:
    """Σ_l KL(q_l ‖ p_l) along the sampled prefix, (B,); its mean over q is KL(q ‖ p)."""
    return total(map(kl_bernoulli, out.q_logits, out.p_logits))
