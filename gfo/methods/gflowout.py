"""GFlowOut: masks that depend on the example, trained by trajectory balance (eqs 1–6)."""

from functools import partial
from typing import Any

import torch

from gfo.core.batch import rows, tree_map
from gfo.core.masked_pass import BatchPass, Pass
from gfo.core.noise import derive
from gfo.core.objectives import OBJECTIVES, Objective, Terms, fixed_at, kl_bernoulli, total
from gfo.core.policies import POLICIES, FixedPolicy, LayerwisePolicy, LogZ
from gfo.core.registry import METHODS
from gfo.methods.arm import arm
from gfo.methods.base import Loss, Method, check_keep
from gfo.methods.contextual import layerwise_kl

CHOICES = {"prior_objective": "kl literal", "theta": "q~ q", "activation": "same before none"}
READS = {"same": ["h"], "before": ["h_before"], "none": []}


class GFlowOut(Method):
    """GFlowOut (Liu et al., 2023, section 3.2 and Algorithm 1).

    q(z_l | h'_l, y, z_<l) is trained by trajectory balance toward R = p(y | x, z) p(z | x); the
    prior p(z_l | h'_l, z_<l) follows q and draws the masks at test time; log Z reads (x, y).
    The loss has three parts with disjoint gradients: "nll" moves the backbone, "tb" q and log Z,
    "prior" p.

    Args:
        temperature: Of the training policy q~ (A.0.1: 2). log q is always taken at temperature 1.
        random: Share of random masks under q~ (A.0.1: 0.1; the released code sets it to 0).
        prior_objective: How p follows q. "kl", eq (4), is KL(q_l ‖ p_l) in closed form, summed
            along the sampled prefix. It is KL(q ‖ p) only for prefixes drawn from q; ours come from
            q~. "literal" is −log p of the sampled mask, as the released code does, which aims p at
            q~.
        prior: None for the learned prior, or a keep-probability for a fixed one.
        activation: "same" for h'_l (Algorithm 1), "before" for h_{l−1} (the paper's section 3.2),
            "none" where q and p shall not read the input.
        label: Whether q reads y (the paper: it does).
        earlier: Whether q and p read the earlier masks (the paper: they do).
        beta: Exponent of the likelihood in R (the paper: 1; released scripts go down to 0.001).
        theta: Masks under which the backbone learns: "q~" (one pass, Algorithm 1), or "q" (a second
            pass under q itself, as the gradient below eq (4) is written).
        rescale: As in `Method`.
        hidden: Width of every generator.
        objective: What trains q. "tb", the paper's; "vargrad", log-partition variance, no log Z
            net; "subtb", SubTB(λ) with λ = `lam` and state flows, for toy nets; "reverse-kl",
            REINFORCE with a leave-one-out baseline, no log Z net, always on masks of q itself;
            "arm", the same KL by `gfo.methods.arm`, one mask and a pseudo-pass per site.
        masks: Masks per example and step, folded into the batch (the paper: 1); "vargrad" and
            "reverse-kl" compare masks of one example and need 2.
        policy: "layerwise", the paper's, or "unitwise"; a learned prior takes the policy of its q.
        lam: λ of "subtb".
        keep: The keep-probability at which q and a learned prior start.
        tied: Whether all bits of a layer have one keep-probability, of q and of a learned prior.
        pull: λ, how hard a learned prior is held to where it starts: λ · KL(p ‖ Bernoulli(keep)) is
            added, in closed form along the sampled prefix. 0, the paper: it drifts freely.
        anneal: Epochs over which `temperature` and `random` fall, in a line, to 1 and 0 (the paper:
            0, they stay). Counted by the rows that the loss has seen in train mode; a `shard`
            counts for all, which have to run side by side.
        e_steps: Steps of q for each one of backbone and p, the E-steps and M-steps of GFlowNet-EM
            (Hu et al., 2023), by the number of the step, to which that of the epoch is added, or at
            random where `loss` is given no step. 1, the paper: all move together.
        sleep: Weight of GFlowNet-EM's sleep phase: q also learns the masks that p drew from a y
            drawn under them, by the same noise on every `shard`. 0, the paper: it does not.
    """

    own_posterior = True

    @classmethod
    def recommended(cls, masks: int = 4, **changes: Any) -> "GFlowOut":
        """GFlowOut as we would start, chosen on validation images only (*What a mask posterior is
        for*); against the paper it changes three things.

        Masks are drawn from q itself, where the paper's training policy is tempered and mixed with
        random masks: backbone and p learn under whatever draws the masks, and on half-digits the
        paper's policy costs them several nats. Four masks per example and step, so that q is told
        which of an example's masks explains y better; each costs a pass. And with several masks
        VarGrad takes the place of the log Z network, which has a moving likelihood to follow. With
        one mask there is nothing to compare, and trajectory balance stays. The mask networks have
        100 hidden units, where the default is 32; that was not tuned.

        Drawn from q itself, VarGrad's gradient is, but for a factor, the one of variational
        inference with the other masks as a baseline (Richter et al., 2020): what is left of the
        paper is the posterior that reads y and the prior that follows it, not off-policy training.

        Args:
            masks: Per example and step.
            **changes: Any other argument of `GFlowOut`.
        """
        known: Any = {"temperature": 1.0, "random": 0.0, "masks": masks, "hidden": 100}
        return cls(**known | {"objective": "vargrad" if masks > 1 else "tb"} | changes)

    hash_defaults = dict(
        objective="tb", masks=1, policy="layerwise", lam=0.9, keep=0.5, tied=False, pull=0.0,
        anneal=0, e_steps=1, sleep=0.0,
    )  # fmt: skip
    temperature: float = 2.0
    random: float = 0.1
    prior_objective: str = "kl"
    prior: float | None = None
    activation: str = "same"
    label: bool = True
    earlier: bool = True
    beta: float = 1.0
    theta: str = "q~"
    rescale: bool = False
    hidden: int = 32
    objective: str = "tb"
    masks: int = 1
    policy: str = "layerwise"
    lam: float = 0.9
    keep: float = 0.5
    tied: bool = False
    pull: float = 0.0
    anneal: int = 0
    e_steps: int = 1
    sleep: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed.split():
                raise ValueError(f"{name} is {value!r}, not one of {allowed!r}")
        if self.prior is not None:
            check_keep(self.prior, "prior")
        POLICIES[self.policy]
        need, what = self.kind.masks, f"objective {self.objective!r}"
        if self.masks < need:
            raise ValueError(f"masks is {self.masks}, {what} needs at least {need}")
        for name in (k for k in ("lam", "pull", "sleep") if not getattr(self, k) >= 0):
            raise ValueError(f"{name} is {getattr(self, name)}, needs to be at least 0")
        if self.pull and self.prior is not None:
            raise ValueError(f"pull is {self.pull}, but the prior is fixed: it cannot drift")
        alone = "tied" if self.tied else "" if self.kind.loss else what
        if alone and self.policy == "unitwise":
            raise ValueError(f"{alone} needs bits that know nothing of each other: not unitwise")
        if not self.kind.loss and self.masks > 1:
            raise ValueError(f"masks is {self.masks}, {what} takes one")
        if self.anneal:
            self.seen = torch.nn.Buffer(torch.zeros(()))  # epochs, kept with the weights
        self.name = "gflowout-literal" if self.prior_objective == "literal" else "gflowout"
        self.steady = self.e_steps == 1
        self.reads_label = self.label
        self.reads_before = self.activation == "before"

    @property
    def kind(self) -> Objective:
        """What its objective asks for."""
        return OBJECTIVES[self.objective]

    def make(self, spec):
        if self.reads_before and spec.x_size is None:
            raise ValueError('activation="before" needs x to be one small float tensor; use "same"')
        reads = READS[self.activation] + ["z"] * self.earlier
        sizes = dict(before=spec.x_size, hidden=self.hidden, keep=self.keep)
        sizes |= {"outputs": 1} if self.tied else {}
        policy = partial(POLICIES[self.policy], spec.sites, spec.classes, **sizes)
        self.q = policy(reads + ["y"] * self.reads_label)
        self.p = policy(reads) if self.prior is None else FixedPolicy(spec.sites, self.prior)
        self.log_z = LogZ(spec.log_z_size, spec.classes) if self.kind.log_z else None
        if self.kind.flows:
            if any(site.tokens for site in spec.sites):
                raise ValueError('objective="subtb" is for sites without tokens; use "tb"')
            sizes = dict(hidden=self.hidden, outputs=1)
            self.flow = LayerwisePolicy(spec.sites, spec.classes, ("h", "z", "y"), **sizes)

    def log_flow(self, layer, context):
        if layer == 0 or not self.kind.flows:
            return None  # the flow of the first state is log Z
        return self.flow.evaluate(layer, context).squeeze(1)  # (B, 1) -> (B,)

    def exploration(self):
        if not self.anneal:
            return super().exploration()
        left = (1 - self.seen / self.anneal).clamp_min(0)
        return 1 + (self.temperature - 1) * left, self.random * left

    def loss(self, batch_pass, n):
        twice = self.theta == "q"
        out = batch_pass(source=self.kind.source, repeat=self.masks, still=twice).scored()
        under = batch_pass(source="q", draw=1) if twice else out
        if self.kind.loss:
            terms = self.terms(out, self.log_reward(out.log_lik, out.log_p.detach(), n))
            loss = self.kind.loss(terms)
        else:
            loss = self.arm_part(batch_pass, out)
        parts = {"nll": -under.log_lik.mean(), self.objective: loss.mean()}
        if self.prior is None:
            parts["prior"] = self.prior_part(out).mean()
        if self.pull:
            drift = total(kl_bernoulli(p, fixed_at(self.keep, p)) for p in out.p_logits)
            parts["pull"] = self.pull * drift.mean()
        if self.sleep:
            parts["sleep"] = self.sleep * self.sleep_part(batch_pass).mean()  # pyright: ignore[reportCallIssue]
        if self.anneal and self.training:
            _, world = batch_pass.shard
            self.seen += rows(batch_pass.x) * world / n  # what is drawn later reads it
        info = {} if out.log_z is None else {"log_z": out.log_z.detach().mean()}
        # backbone and p stand still; the epoch is added, since some have but one step
        if not self.steady and sum(batch_pass.key[2:] or batch_pass.key) % self.e_steps:
            info |= {k: parts.pop(k).detach() for k in ("nll", "prior", "pull") if k in parts}
        return Loss(parts, info)

    def arm_part(self, batch_pass: BatchPass, out: Pass) -> torch.Tensor:
        """KL(q ‖ p) of the prefix, (B,), with the gradient in q of E_q[log q − log R]."""
        kl = total(map(kl_bernoulli, out.q_logits, [p.detach() for p in out.p_logits]))
        return kl + arm(batch_pass, out, lambda one: layerwise_kl(one) - self.beta * one.log_lik)

    @torch.compiler.disable  # it has passes of its own, whose noise is drawn inside
    def sleep_part(self, batch_pass: BatchPass) -> torch.Tensor:
        """−log q(z | x, y) of z from p and y from p(y | x, z), (B,), in nats."""
        net, key = batch_pass.net, batch_pass.key
        dream = batch_pass("p", draw=2, forward_only=True)
        with torch.random.fork_rng():
            torch.manual_seed(derive(*key, "sleep"))
            y = net.likelihood.distribution(dream.logits).sample()
        asleep = BatchPass(net, batch_pass.x, y, key, batch_pass.shard)
        return -asleep(masks=dream.masks, still=True).log_q

    def terms(self, out: Pass, log_reward: torch.Tensor) -> Terms:
        """A folded pass of K·B rows as the objectives compare it, (K, B)."""
        folded = (out.log_z, out.log_q_sites, out.log_flows, log_reward)  # (K·B,) -> (K, B)
        log_z, log_q, flows, reward = tree_map(lambda t: t.unflatten(0, (self.masks, -1)), folded)
        return Terms(log_z, log_q, flows, reward, self.lam)

    def prior_part(self, out) -> torch.Tensor:
        """What pulls p toward q, shape (B,), in nats; no gradient to q."""
        return -out.log_p if self.prior_objective == "literal" else total(out.kl_sites)


METHODS["gflowout"] = GFlowOut
METHODS["gflowout-literal"] = partial(GFlowOut, prior_objective="literal")
