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

    def __init__(self, *, keep: float = 0.5, rescale: bool = False):
        super().__init__(rescale=rescale, keep=check_keep(keep))
        self.keep = keep
        del self.config["temperature"], self.config["random"]

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

    def __init__(self, *, keep: float = 0.9, repeats: int = 4, rescale: bool = False):
        if repeats < 1:
            raise ValueError(f"repeats is {repeats}, needs to be at least 1")
        super().__init__(keep=keep, rescale=rescale)
        self.repeats = self.config["repeats"] = repeats

    def loss(self, run, n):
        return Loss({"nll": -run(source="train", repeat=self.repeats).log_lik.mean()}, {})
