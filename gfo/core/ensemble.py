"""Several networks that answer as one (Lakshminarayanan et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gfo.core.attached import Attached


class Ensemble(nn.Module):
    """Networks of `gfo.attach`, trained independently, whose predictive is the members' mean.

    `gfo.predict(ensemble, x, samples=20)` and `gfo.sample_logits` answer, with ⌈samples / members⌉
    masks a member. Whatever belongs to one network (sample, score, fit, save) is asked of a member,
    `ensemble.nets[0]`. ValueError where members are none, not attached, or differ in shapes.
    """

    def __init__(self, nets: Sequence[Attached]):
        super().__init__()
        if not len(nets):
            raise ValueError("an ensemble needs at least one net")
        for net in nets:
            if not isinstance(net, Attached):
                raise ValueError(f"members come from gfo.attach, got a {type(net).__name__}")
        if len({(net.spec.classes, net.spec.shapes) for net in nets}) > 1:
            raise ValueError("members differ in their input shape or number of classes")
        self.nets, self.likelihood = nn.ModuleList(nets), nets[0].likelihood
