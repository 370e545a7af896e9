"""Random dropout, as it is and trained on the mean over several masks."""

from __future__ import annotations

from gfo.core.policies import FixedPolicy
from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method, check_keep


@METHODS.register("random")
class RandomDropout(Method):
    """Standard Bernoulli dropout with masks sampled at test time too (Gal & Ghahramani, 2016).

    keep: probability that a unit is kept. No q, no log Z: `score` returns None for both.
    """

    name = "random"
    keep: float = 0.5
    rescale: bool = False

    def __post_init__(self):
        check_keep(self.keep)
        super().__post_init__()

    def make(self, spec):
        self.p = FixedPolicy(spec.sites, self.keep)

    def loss(self, run, n):
        out = run(source="train")
        return Loss({"nll": -out.log_lik.mean()}, {})


@METHODS.register("mc-improved")
class MCImproved(RandomDropout):
    """The variant of uncertainty-baselines' CIFAR table, footnote 11 (Nado et al., 2021).

    Dropout after every layer: sites behind every hidden layer with weights, its normalisation
    included, and not behind the output; `attach` says where: all ReLUs of an MLP, ``*bn?`` of a
    torchvision ResNet. Whole channels of feature maps, as `attach` has it anyway.
    repeats: each example is in its batch this many times, every time under another mask.
    keep: probability that a unit or channel is kept; mild, being everywhere.
    """

    name = "mc-improved"
    keep: float = 0.9
    repeats: int = 4

    def __post_init__(self):
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}, needs to be at least 1")
        super().__post_init__()

    def loss(self, run, n):
        return Loss({"nll": -run(source="train", repeat=self.repeats).log_lik.mean()}, {})
