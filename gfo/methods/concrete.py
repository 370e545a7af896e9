"""Concrete dropout: one keep-probability per layer, learned by gradient (Gal et al., 2017)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gfo.core.objectives import kl_bernoulli
from gfo.core.policies import FixedPolicy, LearnedPolicy
from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method
from gfo.methods.consumers import find_consumers


def relaxed_bernoulli(logits: Tensor, u: Tensor, temperature: float) -> Tensor:
    """A sample in (0, 1) of the Concrete distribution (eq 5).

    As temperature → 0 it becomes the mask 1[u < σ(logit)] of the same noise.
    P(z ≤ s) = σ(temperature · logit(s) − logit).

    Args:
        logits: Of the keep-probabilities.
        u: Uniform numbers, of the same shape.
        temperature: Of the relaxation.
    """
    return torch.sigmoid((logits - torch.logit(u)) / temperature)


@METHODS.register("concrete")
class ConcreteDropout(Method):
    """Concrete dropout (Gal, Hron & Kendall, 2017), one learned rate per site.

    The loss is −log p(y | x, z) under relaxed masks plus KL(q(W) ‖ p(W)) / n (eqs 1–4), W being
    diag(z) M, M the weight of the module that reads the site and K the site's width:
    KL = l² keep/2 · ‖M‖² − K H(keep) + constant. With the constant K ln 2 the second part is that
    of K bits against Bernoulli(½). So in `score` log q is the Bernoulli with the learned rates and
    log p is Bernoulli(½); neither reads x or y. Masks are 0/1 in `sample`, `score` and prediction.
    Loss parts "nll", "weights" and "prior" are in nats per example.

    Args:
        keep: Where the rates start.
        temperature: Of the relaxation (the paper: 0.1).
        length_scale: l, of the Gaussian prior over weights.
        relaxed: Predict under relaxed masks, which `sample` without y then returns too.
        consumers: Site to name of the module that reads it, where neither the model's own
            `consumers` nor an nn.Sequential tells.
    """

    name = "concrete"
    test = "q"
    keep: float = 0.9
    temperature: float = 0.1
    length_scale: float = 0.01
    relaxed: bool = False
    consumers: Mapping[str, str] | None = None

    def __post_init__(self):
        self.consumers = dict(self.consumers or {})
        super().__post_init__()
        self.binary = not self.relaxed

    def build(self, spec, model):
        readers = find_consumers(model, spec, self.consumers or {})
        super().build(spec, model)  # which may refuse: a method that is attached keeps its own
        self.readers = readers  # a tuple, so that the backbone's weights do not become the method's

    def make(self, spec):
        self.q = LearnedPolicy(spec.sites, self.keep)
        self.p = FixedPolicy(spec.sites, 0.5)
        widths = torch.tensor([float(site.width) for site in spec.sites])
        self.widths = nn.Buffer(widths, persistent=False)

    def draw(self, logits, u, explore, source):
        if source == "train" or (source == "test" and self.relaxed):
            return relaxed_bernoulli(logits, u, self.temperature)
        return super().draw(logits, u, explore, source)

    def regulariser(self) -> tuple[Tensor, Tensor]:
        """The two parts of KL(q(W) ‖ p(W)) (eq 3), summed over sites, scalars in nats."""
        norms = torch.stack([m.weight.float().square().sum() for m in self.readers])  # (L,)
        weights = 0.5 * self.length_scale**2 * (torch.sigmoid(self.q.logits) * norms).sum()
        bits = kl_bernoulli(self.q.logits[:, None], self.p.logits[:, None])  # (L,), of one bit each
        return weights, (self.widths * bits).sum()

    def loss(self, batch_pass, n):
        out = batch_pass(source="train")
        weights, masks = self.regulariser()
        parts = {"nll": -out.log_lik.mean(), "weights": weights / n, "prior": masks / n}
        keep = torch.sigmoid(self.q.logits.detach())
        return Loss(parts, {f"keep_{layer}": k for layer, k in enumerate(keep, 1)})
