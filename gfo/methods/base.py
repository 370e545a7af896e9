"""What a dropout method is: its policies over masks, how masks are drawn, and its loss.

A new method is one new file in `gfo/methods`: subclass `Method`, make the policies in `make`, write
`loss`, and file it under a name with `@METHODS.register`.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, dataclass_transform

from torch import Tensor, nn

from gfo.core.batch import device_of, to_device
from gfo.core.checks import check_batch, check_counts
from gfo.core.masked_pass import BatchPass, Perhaps
from gfo.core.objectives import total
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

    @property
    def total(self) -> Tensor:
        """The sum of the parts, to call `backward` on."""
        return total(self.parts.values())


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
        stochastic: False if every draw is the same.
        steady: Whether each step runs the same operators, so that a CUDA graph can hold them.
        count: How many masks it has in all, each of which a prediction takes once, whatever
            `samples` says; 0 where they are drawn anew, 1 where no two draws differ.
        members: Networks that an experiment trains for one run; above 1 for ensembles.
        temperature: Training masks come from σ(logit / temperature).
        random: Probability, per example and layer, of a Bernoulli(0.5) mask in training.
        beta: Exponent of the likelihood in `log_reward`.
        masks: Masks per example and step, folded into the batch.
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
    count = 0
    binary = True
    steady = True
    members = 1

    # Arguments that some methods take; a class that annotates one makes it an argument of its own.
    temperature = 1.0
    random = 0.0
    beta = 1.0
    rescale = False
    masks = 1
    # Arguments that came after the first recorded runs: at these values `config` leaves them out,
    # so that the identity of those runs holds.
    hash_defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **how: Any):
        """Annotated class attributes become keyword arguments, as in a dataclass."""
        super().__init_subclass__(**how)
        if "__init__" in vars(cls):
            cure = "annotate its arguments as class attributes, check them in __post_init__"
            raise TypeError(f"{cls.__name__} has an __init__: {cure}")
        dataclass(eq=False, repr=False, kw_only=True)(cls)

    def __post_init__(self):
        """Check the arguments, and keep them as `config`; one with more to check extends it."""
        super().__init__()
        own = {}
        for field in fields(self):  # pyright: ignore[reportArgumentType]  # it is a dataclass
            value = getattr(self, field.name)
            # plain numbers, which any file holds, for those of NumPy
            own[field.name] = getattr(value, "tolist", lambda v=value: v)()
            check_argument(field.name, own[field.name], field.default)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, needs to be > 0")
        if not 0 <= self.random <= 1:
            raise ValueError(f"random is {self.random}, needs to be a probability in [0, 1]")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}, needs to be at least 0")
        if "keep" in own:
            check_keep(own["keep"])
        self.config = {k: v for k, v in own.items() if self.hash_defaults.get(k, ...) != v}
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
            raise ValueError(f"this {self.name} already belongs to a network: make a new one")
        self.make(spec)
        self.built = True

    def make(self, spec: Spec) -> None:
        """Make the policies for these sites, and what else the method learns; here nothing."""

    def loss(self, batch_pass: BatchPass, n: int) -> Loss:
        """The loss of one batch; here the NLL under the training masks, `masks` per example.

        Args:
            batch_pass: `batch_pass(source=…, draw=…)` is the masked pass on it, which may be called
                more than once (see `gfo.core.masked_pass.BatchPass`).
            n: Size of the training set.
        """
        return Loss({"nll": -batch_pass(source="train", repeat=self.masks).log_lik.mean()}, {})

    def loss_of(self, net: Any, x: Any, y: Any, n: int, key: tuple, shard: tuple) -> Loss:
        """`loss` of a batch that is checked first: what `net.loss` returns."""
        check_counts(n=n)
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard is {shard}, needs (rank, world) with 0 ≤ rank < world")
        x, y = to_device(check_batch(net, x, y), device_of(net))
        read = self.reads_label or isinstance(self.log_z, LogZ) or hasattr(net.likelihood, "log_sd")
        if read and net.likelihood.real and not net.likelihood.y_seen:
            cure = "call net.likelihood.standardise([y of the training set]) before the first step"
            warnings.warn(f"y is read as it is, unstandardised: {cure}", stacklevel=3)
        return self.loss(BatchPass(net, x, y, key, shard), n)

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
        """log R of masks, in nats, as q is held against it: β·log p(y|x,z) + log p(z|x).

        Args:
            log_lik: Example first, (B, ...).
            log_p: Example first, (B, ...).
            n: Size of the training set.
        """
        return self.beta * log_lik + log_p

    def mask_at_site(
        self, layer: int, context: Context, mask: Perhaps, u: Perhaps, explore: Perhaps, source: str
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Take or draw the mask of one site, and score it.

        The policy that leads draws the mask if none is given, and the other one scores it; only the
        leader runs at test time.

        Args:
            layer: Number of the site.
            context: What policies may read there.
            mask: The given one, or None.
            u: Uniform numbers from which bits are drawn, (B, C) or (B, T, C).
            explore: Uniform numbers that decide whether the layer takes a random mask, (B, 1). To a
                method that has `count` masks those of the first site at every site: mask
                ⌊explore · count⌋; a prediction goes through them all.
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
        if source == "mean":  # a bare call trains no mask
            return logits.detach().sigmoid()
        # a comparison has no gradient: record none on the way to it. In float32, as it is scored
        logits = logits.detach().float()
        training = source == "train"
        temperature, random = self.exploration()
        keep = (logits / temperature).sigmoid_() if training else logits.sigmoid()
        if training and self.random:
            explore = explore.reshape(-1, *[1] * (u.dim() - 1))  # (B, 1) -> (B, 1[, 1])
            keep = keep.masked_fill(explore < random, 0.5)  # of one row, it may be
        return (u < keep).float()

    def exploration(self) -> tuple[Tensor | float, Tensor | float]:
        """(temperature, random) of the training policy as they now stand."""
        return self.temperature, self.random

    def scale(self, mask: Tensor) -> Tensor:
        """The mask as it multiplies the activation."""
        least = 1 / mask.shape[-1]  # an empty layer stays empty
        return mask / mask.mean(-1, keepdim=True).clamp_min(least) if self.rescale else mask

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.config.items())})"


def check_argument(name: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a value is of its default's kind.

    True or False, a count of at least 1, a finite number, or text; nothing is asked where the
    default is none of these.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        fits, needs = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        least = min(default, 1)
        fits = number and isinstance(value, int) and value >= least
        needs = f"at least {least}, a whole number"
    elif isinstance(default, float):
        fits, needs = number and math.isfinite(value), "a finite number"
    else:
        fits, needs = isinstance(value, str) or not isinstance(default, str), "text"
    if not fits:
        raise ValueError(f"{name} is {value!r}, needs to be {needs}")


def check_keep(keep: float, what: str = "keep") -> float:
    """`keep` if it is a probability strictly between 0 and 1, else ValueError."""
    if isinstance(keep, str | bool) or not 0 < keep < 1:
        raise ValueError(f"{what} is {keep}, needs to lie strictly between 0 and 1")
    return float(keep)
