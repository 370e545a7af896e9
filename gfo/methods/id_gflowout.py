"""ID-GFlowOut: one mask posterior for the whole data set (eqs 7–11)."""

import torch
from torch import Tensor, nn

from gfo.core.objectives import tb_residual
from gfo.core.policies import FixedPolicy, LayerwisePolicy
from gfo.core.registry import METHODS, Registry
from gfo.methods.base import Loss, Method


@METHODS.register("id-gflowout")
class IDGFlowOut(Method):
    """ID-GFlowOut (Liu et al., 2023, section 3.3): q(z) ≈ p(z | D) ∝ p(z) Π_i p(y_i | x_i, z).

    The paper writes one shared z in eq (7) and z_i in eq (10). This is eq (7): one mask per batch
    in training, and at test time the same masks for every input (where inputs pad, of the tokens
    that some row of the batch has, so that there its companions matter). q(z_l | z_<l) reads
    earlier masks only; p(z) is fixed; log Z is one number; log R = n·(batch mean of log p(y|x,z)) +
    log p(z).

    The batch mean is an estimate, so the squared residual has a floor, n²·Var[log p(y_i|x_i,z)] ·
    (1/B − 1/n) nat², millions for MNIST, 0 where a batch holds all of the data. It is reported
    beside the squared residual ("tb_floor"). The loss is residual²/n; with Adam the factor changes
    no step.

    Args:
        temperature: Of the training policy q~, as in `GFlowOut`.
        random: Share of random masks under q~, as in `GFlowOut`.
        keep: The fixed prior's keep-probability (the paper: 0.5; its VQA code 0.9).
        start: Where q starts: "half", at keep-probabilities of one half, or "prior", at the
            prior's. The paper does not say; the released code's usual weights begin near one half.
        beta: Exponent of the likelihood on top of n (1 as in eq 11; the released ResNet has n = 0).
        rescale: As in `Method`.
        hidden: Width of every generator.
    """

    name = "id-gflowout"
    test = "q"
    shared = True
    own_posterior = True
    temperature: float = 2.0
    random: float = 0.1
    keep: float = 0.5
    beta: float = 1.0
    rescale: bool = False
    hidden: int = 32
    start: str = "half"
    hash_defaults = dict(start="half")

    def __post_init__(self):
        super().__post_init__()
        self.first = Registry("start", {"half": 0.5, "prior": self.keep})[self.start]
        self.n = nn.Buffer(torch.ones(()))  # set by the first loss, kept with the weights

    def make(self, spec):
        how = dict(hidden=self.hidden, keep=self.first)
        self.q = LayerwisePolicy(spec.sites, spec.classes, ("z",), **how)
        self.p = FixedPolicy(spec.sites, self.keep)
        # log Z_γ' = n·ζ with one learned ζ in nats per example: one learning rate serves any n
        self.log_z = nn.ParameterDict({"per_example": torch.zeros(1)})

    def log_partition(self, features, context) -> Tensor:
        # a copy: the next loss refills n, maybe before the backward pass of this one
        return self.n.clone() * self.log_z.per_example

    def log_reward(self, log_lik, log_p, n):
        return self.beta * n * log_lik.mean(0) + log_p

    def loss(self, batch_pass, n):
        self.n.fill_(n)
        out = batch_pass(source="train")
        residual = tb_residual(out.log_z, out.log_q, self.log_reward(out.log_lik, out.log_p, n))
        b, info = len(out.log_lik), {"tb_residual_sq": residual.detach().square().mean()}
        if b > 1:  # of one row there is no variance
            info["tb_floor"] = (self.beta * n) ** 2 * out.log_lik.detach().var() * (1 / b - 1 / n)
        return Loss({"nll": -out.log_lik.mean(), "tb": residual.square().mean() / n}, info)
