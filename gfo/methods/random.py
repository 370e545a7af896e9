"""Random dropout, as it is and trained on the mean over several masks."""

from typing import ClassVar

from gfo.core.policies import FixedPolicy
from gfo.core.registry import METHODS
from gfo.methods.base import Method


@METHODS.register("random")
class RandomDropout(Method):
    """Standard Bernoulli dropout with masks sampled at test time too (Gal & Ghahramani, 2016).

    No q, no log Z: `score` returns None for both. Kept units are not divided by `keep`, as
    `nn.Dropout` divides them: on a network that was trained with `nn.Dropout(1 - keep)`, take
    `inverted=True`.

    Args:
        keep: Probability that a unit is kept.
        rescale: As in `Method`.
        inverted: Divide kept units by `keep`, as torch does.
        masks: Masks per example and step; the loss is the mean over them.
    """

    name = "random"
    keep: float = 0.5
    rescale: bool = False
    inverted: bool = False
    masks: int = 1
    hash_defaults = dict(inverted=False, masks=1)

    def __post_init__(self):
        super().__post_init__()
        if self.rescale and self.inverted:
            raise ValueError("rescale and inverted both divide the kept units: take one of them")

    def scale(self, mask):
        return mask / self.keep if self.inverted else super().scale(mask)

    def make(self, spec):
        self.p = FixedPolicy(spec.sites, self.keep)


@METHODS.register("mc-improved")
class MCImproved(RandomDropout):
    """The variant of uncertainty-baselines' CIFAR table, footnote 11 (Nado et al., 2021).

    Dropout after every layer: sites behind every hidden layer with weights, its normalisation
    included, and not behind the output; `attach` says where: all ReLUs of an MLP, ``*bn?`` of a
    torchvision ResNet. Whole channels of feature maps, as `attach` has it anyway.

    Args:
        keep: Probability that a unit or channel is kept; mild, being everywhere.
        rescale: As in `Method`.
        inverted: As in `RandomDropout`.
        repeats: Each example is in its batch this many times, every time under another mask.
    """

    name = "mc-improved"
    keep: float = 0.9
    repeats: int = 4
    masks: ClassVar[int]  # no argument here: `repeats` says it

    def __post_init__(self):
        super().__post_init__()
        self.masks = self.repeats  # pyright: ignore[reportAttributeAccessIssue]
