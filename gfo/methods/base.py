"""What a dropout method is: its policies over masks, how masks are drawn, and its loss.

A new method is one new file: subclass `Method`, make the policies in `make`, write `loss`, file it
under a name with `@METHODS.register`, and import the file in `methods/__init__.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import torch
from torch import Tensor, nn

from gfo.core.masked_pass import BatchPass
from gfo.core.policies import Context, LogZ
from gfo.core.sites import Spec


class Loss(NamedTuple):
    """Scalars, in nats unless said.

    Attributes:
        parts: Are summed and minimised.
        info: Is only reported.
    """

    parts: dict[str, Tensor]
    info: dict[str, Tensor]


@dataclass_transform(eq_default=False, kw_only_default=True)
class Method(nn.Module):
    """Base of all methods.

    Subclasses name their arguments as annotated class attributes, and set `self.q` and `self.p` in
    `make`.

    Attributes:
        q: The policy trained toward the posterior, or None.
        p: The prior policy.
        test: Which of the two draws masks at test time ("p" or "q").
        reads_label: Whether q needs y.
        shared: Whether one mask serves the whole batch.
        own_posterior: Whether training aims q at the normalised `log_reward`; else an audit holds
            the masks against p(z|x,y) under prior 0.5, which is not their objective.
        binary: Whether masks are of 0 and 1; where not, given masks may hold any number.
        stochastic: False if every draw is the same, so that one pass predicts.
        members: Networks that an experiment trains for one run; above 1 for ensembles.
        temperature: Training masks come from σ(logit / temperature).
        random: Probability, per example and layer, of a Bernoulli(0.5) mask in training.
        rescale: Divide a masked layer by the kept fraction of its bits, per example (the released
            MLP does, its ResNet and the paper's equations do not).
    """

    name = "method"
    test = "p"
    reads_label = False
    reads_before = False
    shared = False
    own_posterior = False
    stochastic = True
    binary = True
    members = 1

    # Arguments that some methods take; a class that annotates one makes it an argument of its own.
    temperature = 1.0
    random = 0.0
    rescale = False
    # Arguments that came after the first recorded runs: at these values `config` leaves them out,
    # so that the identity of those runs holds.
    hash_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **how: Any):
        """Annotated class attributes become keyword arguments, as in a dataclass."""
        super().__init_subclass__(**how)
        if "__init__" in vars(cls):
            raise TypeError(
                f"{cls.__name__} has an __init__: annotate its arguments as class attributes, and "
                "check them in __post_init__"
            )
        dataclass(eq=False, repr=False, kw_only=True)(cls)

    def __post_init__(self):
        """Check the arguments, and keep them as `config`; one with more to check extends it."""
        super().__init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, needs to be > 0")
        if not 0 <= self.random <= 1:
            raise ValueError(f"random is {self.random}, needs to be a probability in [0, 1]")
        names = fields(self)  # pyright: ignore[reportArgumentType]  # not seen to be a dataclass
        own = {field.name: getattr(self, field.name) for field in names}
        # plain numbers, which any file holds, for those of NumPy
        own = {k: getattr(v, "tolist", lambda v=v: v)() for k, v in own.items()}
        if "keep" in own:
            check_keep(own["keep"])
        late = self.hash_defaults
        self.config = {k: v for k, v in own.items() if k not in late or v != late[k]}
        self.q: Any = None  # whose attributes only their own method knows
        self.p: Any = None
        self.log_z: Any = None
        self.built = False

    def build(self, spec: Spec, model: nn.Module) -> None:
        """Make the mask networks for these sites of `model`; called once, by `attach`.

        A method that needs more of the model than its sites looks at it here.

        Raises:
            ValueError: Where this object has been attached before.
        """
        if self.built:
            raise ValueError(
                f"this {self.name} object already belongs to a network: make a new one"
            )
        self.make(spec)
        self.built = True

    def make(self, spec: Spec) -> None:
        """Make the policies for these sites, and what else the method learns."""
        raise NotImplementedError

    def loss(self, batch_pass: BatchPass, n: int) -> Loss:
        """The loss of one batch.

        Args:
            batch_pass: `batch_pass(source=…, draw=…)` is the masked pass on it, which may be called
                more than once (see `gfo.core.masked_pass.BatchPass`).
            n: Size of the training set.
        """
        raise NotImplementedError

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by optimiser group: "masks" and "log_z", where there are any."""
        log_z = [] if self.log_z is None else list(self.log_z.parameters())
        known = {id(p) for p in log_z}
        masks = [p for p in self.parameters() if id(p) not in known]
        return {name: group for name, group in (("masks", masks), ("log_z", log_z)) if group}

    def log_partition(self, features: Tensor, context: Context) -> Tensor | None:
        """log Z for the batch, in nats.

        Args:
            features: What log Z reads besides y, (B, `Spec.log_z_size`).
            context: At the first site.

        Returns:
            (B,) or (1,); None for a method without a log Z.
        """
        return None if self.log_z is None else self.log_z(features, context.y)

    def log_flow(self, layer: int, context: Context) -> Tensor | None:
        """log F of the state that site `layer` starts from, (B,), in nats; None without one."""
        return None

    def log_reward(self, log_lik: Tensor, log_p: Tensor, n: int) -> Tensor:
        """log R of masks, in nats, as q is held against it: log p(y|x,z) + log p(z|x) here.

        Args:
            log_lik: Example first, (B, ...).
            log_p: Example first, (B, ...).
            n: Size of the training set.
        """
        return log_lik + log_p

    def mask_at_site(
        self,
        layer: int,
        context: Context,
        mask: Tensor | Any,
        u: Tensor | None,
        explore: Tensor | None,
        source: str,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Take or draw the mask of one site, and score it.

        The policy that leads draws the mask if none is given, and the other one scores it; only the
        leader runs at test time.

        Args:
            layer: Number of the site.
            context: What policies may read there.
            mask: The given one, or None.
            u: Uniform numbers from which bits are drawn, (B, C) or (B, T, C).
            explore: Uniform numbers that decide whether the layer takes a random mask, (B, 1).
            source: As in `gfo.masked_pass`.

        Returns:
            (mask, q logits, p logits).
        """
        lead = self.test if source in ("test", "mean") else "p" if source == "p" else "q"
        can_q = self.q is not None and (context.y is not None or not self.reads_label)
        lead = lead if lead == "p" or can_q else "p"
        active = {lead} if source in ("test", "mean") else {"p"} | ({"q"} if can_q else set())

        def draw(logits: Tensor, some: slice = slice(None)) -> Tensor:
            return self.draw(logits, None if u is None else u[..., some], explore, source)

        logits: dict[str, Tensor | None] = {"q": None, "p": None}
        for name in sorted(active, key=lambda name: name != lead):
            mask, logits[name] = getattr(self, name)(layer, context, mask, draw)
        return mask, logits["q"], logits["p"]

    def draw(self, logits: Tensor, u: Tensor | Any, explore: Tensor | Any, source: str) -> Tensor:
        """z = 1[u < σ(logit / T)]; T and the random masks act in training only.

        Args:
            logits: Of some bits of a site.
            u: Uniform numbers for these bits.
            explore: As in `mask_at_site`.
            source: As in `gfo.masked_pass`. Under "mean" the keep-probability itself stands in for
                the mask.
        """
        if source == "mean":
            return torch.sigmoid(logits)
        # a comparison has no gradient: record none on the way to it. In float32, as it is scored
        logits = logits.detach().float()
        if source != "train":
            return (u < torch.sigmoid(logits)).float()
        keep = torch.sigmoid(logits / self.temperature)
        if self.random:
            explore = explore.reshape(-1, *[1] * (u.dim() - 1))  # (B, 1) -> (B, 1[, 1])
            keep = keep.masked_fill(explore < self.random, 0.5)
        return (u < keep).float()

    def scale(self, mask: Tensor) -> Tensor:
        """The mask as it multiplies the activation."""
        if not self.rescale:
            return mask
        kept = mask.mean(-1, keepdim=True)
        return mask / kept.clamp_min(1 / mask.shape[-1])  # an empty layer stays empty

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.config.items())})"

    @staticmethod
    def make_log_z(spec: Spec) -> LogZ:
        """A log Z network that reads what `Spec.log_z_size` says, and y."""
        return LogZ(spec.log_z_size, spec.classes)


def check_keep(keep: float, what: str = "keep") -> float:
    """`keep` if it is a probability strictly between 0 and 1, else ValueError."""
    if not 0 < keep < 1:
        raise ValueError(f"{what} is {keep}, needs to lie strictly between 0 and 1")
    return float(keep)
