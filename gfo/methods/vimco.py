"""VIMCO: the bound of K masks with a learned prior over masks (Mnih & Rezende, 2016)."""

import torch
from torch import Tensor

from gfo.core.policies import LayerwisePolicy
from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method
from gfo.methods.importance_weighted import log_mean


def score_surrogate(log_lik: Tensor, log_p: Tensor) -> Tensor:
    """A surrogate of value 0 for what the bound's gradient lacks: that masks are drawn from p.

    Its gradient is Σ_k (L − L_k) ∇ log p(z_k), where L is `log_mean` of the likelihoods and L_k the
    same with the geometric mean of the others in place of the k-th. L_k does not depend on z_k, so
    that the estimate is unbiased.

    Args:
        log_lik: log p(y | x, z_k), (K, B), K at least 2.
        log_p: log p(z_k | x), (K, B).

    Returns:
        (B,).
    """
    log_lik, count = log_lik.detach(), len(log_lik)
    others = (log_lik.sum(0) - log_lik) / (count - 1)  # (K, B)
    own = torch.eye(count, dtype=torch.bool, device=log_lik.device).unsqueeze(-1)
    without = torch.where(own, others, log_lik.unsqueeze(1))  # (K, K, B): of mask j, without mask k
    surrogate = ((log_mean(log_lik) - log_mean(without)) * log_p).sum(0)
    return surrogate - surrogate.detach()


@METHODS.register("vimco")
class VIMCO(Method):
    """Dropout whose prior over masks is learned on the bound of K masks (Mnih & Rezende, 2016).

    Minimised is −log (1/K) Σ_k p(y | x, z_k), masks drawn from p(z | x), a small network per site
    that reads h'_l and the earlier masks, so that it draws the masks at test time too. p learns by
    the score function with a baseline from the other masks of the example. No q, no log Z. Loss
    part "nll" moves the backbone, "vimco" p; the last has value 0.

    Args:
        keep: Where p starts.
        masks: K, masks per example and step, folded into the batch; at least 2.
        rescale: As in `Method`.
        hidden: Width of every network of p.
    """

    name = "vimco"
    keep: float = 0.5
    masks: int = 4
    rescale: bool = False
    hidden: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.masks < 2:
            raise ValueError(f"masks is {self.masks}, needs to be at least 2: each has a baseline")

    def make(self, spec):
        sites, classes = spec.sites, spec.classes
        self.p = LayerwisePolicy(sites, classes, ("h", "z"), hidden=self.hidden, keep=self.keep)

    def loss(self, batch_pass, n):
        out = batch_pass(source="p", repeat=self.masks)
        log_lik, log_p = (t.unflatten(0, (self.masks, -1)) for t in (out.log_lik, out.log_p))
        nll, score = -log_mean(log_lik), -score_surrogate(log_lik, log_p)
        return Loss({"nll": nll.mean(), "vimco": score.mean()}, {})
