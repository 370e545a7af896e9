"""Several networks that answer as one (Lakshminarayanan et al., 2017)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from gfo.core.attached import Attached
from gfo.core.likelihood import Likelihood


class Ensemble(nn.Module):
    """Networks of `gfo.attach`, trained independently, whose predictive is the members' mean.

    `gfo.predict(ensemble, x, samples=20)` and `gfo.sample_logits` answer, with ⌈samples / members⌉
    masks per member. Whatever belongs to one network (sample, score, fit, save) is asked of a
    member, `ensemble.nets[0]`.

    Args:
        nets: The members; one alone will do.

    Raises:
        ValueError: Where members are none, not attached, or differ in shapes.
    """

    nets: Any  # an nn.ModuleList of Attached

    def __init__(self, nets: Sequence[Attached] | Attached):
        super().__init__()
        nets = [nets] if isinstance(nets, Attached) else list(nets)
        if not nets:
            raise ValueError("an ensemble needs at least one net")
        if odd := [net for net in nets if not isinstance(net, Attached)]:
            raise ValueError(f"members come from gfo.attach, got a {type(odd[0]).__name__}")
        if len({(n.likelihood.outputs, n.spec.shapes, repr(n.likelihood)) for n in nets}) > 1:
            raise ValueError("members differ in their input shape, number of classes or likelihood")
        self.nets = nn.ModuleList(nets)

    @property
    def likelihood(self) -> Likelihood:
        """The first member's; what it learns is each member's own."""
        return self.nets[0].likelihood
