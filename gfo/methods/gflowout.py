"""GFlowOut: masks that depend on the example, trained by trajectory balance (eqs 1–6)."""

from __future__ import annotations

from functools import partial

import torch

from ..objectives import kl_bernoulli, trajectory_balance
from ..policies import FixedPolicy, LayerwisePolicy
from ..registry import METHODS
from .base import Loss, Method, check_keep

READINGS = ("kl", "literal")


class GFlowOut(Method):
    """GFlowOut (Liu et al., 2023, section 3.2 and Algorithm 1).

    q(z_l | h'_l, y, z_<l) is trained by trajectory balance toward R = p(y | x, z) p(z | x); the
    prior p(z_l | h'_l, z_<l) follows q and draws the masks at test time; log Z reads (x, y).
    The loss has three parts with disjoint gradients: "nll" moves the backbone, "tb" q and log Z,
    "prior" p.

    temperature, random: the training policy q~ (A.0.1: 2 and 0.1; the released code sets the
        latter to 0). log q is always taken at temperature 1.
    prior_objective: how p follows q. "kl", eq (4): KL(q_l ‖ p_l) in closed form, summed along the
        sampled prefix. It is KL(q ‖ p) only for prefixes drawn from q; ours come from q~.
        "literal": −log p of the sampled mask, as the released code does, which aims p at q~.
    prior: None for the learned prior, or a keep-probability for a fixed one.
    activation: "same" for h'_l (Algorithm 1), "before" for h_{l−1} (the paper's section 3.2).
    label, earlier: whether q reads y, and whether q and p read the earlier masks (the paper: both).
    beta: exponent of the likelihood in R (the paper: 1; released scripts go down to 0.001).
    theta: masks under which the backbone learns: "q~" (one pass, Algorithm 1), or "q" (a second
        pass under q itself, as the gradient below eq (4) is written).
    hidden: width of every generator.
    """

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        random: float = 0.1,
        prior_objective: str = "kl",
        prior: float | None = None,
        activation: str = "same",
        label: bool = True,
        earlier: bool = True,
        beta: float = 1.0,
        theta: str = "q~",
        rescale: bool = False,
        hidden: int = 32,
    ):
        for value, allowed in (
            (prior_objective, READINGS),
            (theta, ("q~", "q")),
            (activation, ("same", "before")),
        ):
            if value not in allowed:
                raise ValueError(f"{value!r} is not one of {allowed}")
        if prior is not None:
            check_keep(prior, "prior")
        super().__init__(
            temperature=temperature, random=random, rescale=rescale,
            prior_objective=prior_objective, prior=prior, activation=activation, label=label,
            earlier=earlier, beta=beta, theta=theta, hidden=hidden,
        )  # fmt: skip
        self.reads_label = label
        self.reads_before = activation == "before"
        self.literal, self.prior, self.beta, self.theta = (
            prior_objective == "literal",
            prior,
            beta,
            theta,
        )

    @property
    def name(self) -> str:
        return "gflowout-literal" if self.literal else "gflowout"

    def make(self, spec):
        if self.reads_before and spec.x_size is None:
            raise ValueError('activation="before" needs x to be one small float tensor; use "same"')
        reads = ["h_before" if self.reads_before else "h"] + ["z"] * self.config["earlier"]
        policy = partial(
            LayerwisePolicy, spec.sites, spec.classes,
            before=spec.x_size, hidden=self.config["hidden"],
        )  # fmt: skip
        self.q = policy(reads + ["y"] * self.reads_label)
        self.p = policy(reads) if self.prior is None else FixedPolicy(spec.sites, self.prior)
        self.log_z = self.make_log_z(spec)

    def loss(self, run, n):
        out = run(source="train")
        under = out if self.theta == "q~" else run(source="q", draw=1)
        log_reward = self.beta * out.log_lik + out.log_p
        tb = trajectory_balance(out.log_z, out.log_q, log_reward)
        parts = {"nll": -under.log_lik.mean(), "tb": tb.mean()}
        if self.prior is None:
            parts["prior"] = self.prior_part(out).mean()
        return Loss(parts, {"log_z": out.log_z.detach().mean()})

    def prior_part(self, out) -> torch.Tensor:
        """What pulls p toward q, shape (B,), in nats; no gradient to q."""
        if self.literal:
            return -out.log_p
        pairs = zip(out.q_logits, out.p_logits, strict=True)
        return sum(kl_bernoulli(q.detach(), p) for q, p in pairs)


METHODS["gflowout"] = GFlowOut
METHODS["gflowout-literal"] = partial(GFlowOut, prior_objective="literal")
