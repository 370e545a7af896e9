"""Random dropout, as it is and trained on the mean over several masks."""

from gfo.core.checks import check_counts
from gfo.core.policies import FixedPolicy
from gfo.core.registry import METHODS
from gfo.methods.base import Loss, Method


@METHODS.register("random")
class RandomDropout(Method):
    """Standard Bernoulli dropout with masks sampled at test time too (Gal & Ghahramani, 2016).

    No q, no log Z: `score` returns None for both.

    Args:
        keep: Probability that a unit is kept.
        rescale: As in `Method`.
    """

    name = "random"
    repeats = 1
    keep: float = 0.5
    rescale: bool = False

    def make(self, spec):
        self.p = FixedPolicy(spec.sites, self.keep)

    def loss(self, batch_pass, n):
        out = batch_pass(source="train", repeat=self.repeats)
        return Loss({"nll": -out.log_lik.mean()}, {})


@METHODS.register("mc-improved")
class MCImproved(RandomDropout):
    """The variant of uncertainty-baselines' CIFAR table, footnote 11 (Nado et al., 2021).

    Dropout after every layer: sites behind every hidden layer with weights, its normalisation
    included, and not behind the output; `attach` says where: all ReLUs of an MLP, ``*bn?`` of a
    torchvision ResNet. Whole channels of feature maps, as `attach` has it anyway.

    Args:
        keep: Probability that a unit or channel is kept; mild, being everywhere.
        rescale: As in `Method`.
        repeats: Each example is in its batch this many times, every time under another mask.
    """

    name = "mc-improved"
    keep: float = 0.9
    repeats: int = 4

    def __post_init__(self):
        check_counts(repeats=self.repeats)
        super().__post_init__()
