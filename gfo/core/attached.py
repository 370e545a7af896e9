"""A model with masks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gfo.core.batch import Tokens, device_of
from gfo.core.handler import SiteHandler, small_features
from gfo.core.likelihood import Categorical
from gfo.core.sites import Site, Spec, pick

if TYPE_CHECKING:
    from gfo.methods.base import Method

Handler = Callable[[int, Tensor, Tensor | None], Tensor]  # (layer, h, real) -> masked h


class Hub:
    """Where the hooks of one network find the masked pass that is running, if one is."""

    def __init__(self):
        self.handler: Handler | None = None


class SiteHook:
    """The forward hook of one site.

    An object, not a closure, so that `copy.deepcopy` of the network takes the hook along and the
    copy's hooks know the copy's hub.
    """

    def __init__(self, hub: Hub, layer: int):
        self.hub, self.layer = hub, layer

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        handler = self.hub.handler
        if handler is None and recomputing():
            raise ValueError(
                f"site {self.layer} runs again in the backward pass, without its mask: switch "
                "activation checkpointing off where a site is inside"
            )
        real = args[1] if isinstance(module, Tokens) and len(args) > 1 else None
        return None if handler is None else handler(self.layer, output, real)


def recomputing() -> bool:
    """Whether autograd is running a backward pass, in which checkpointed modules run again."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1


class Attached(nn.Module):
    """A model with masks: what `attach` returns.

    A bare call `net(x)` is never a random draw. It is the model's own output, in the model's own
    structure, with each mask replaced by its keep-probability under the test-time policy (the
    weight-scaling rule of Srivastava et al., 2014): one pass, the same every time, in train() and
    eval() alike as far as the model's own modules allow. The mask-averaged predictive is
    `gfo.predict(net, x)`.

    Call it with `with gfo.attach(...) as net:` and the model is as it was on leaving the block.
    """

    def __init__(self, model: nn.Module, spec: Spec, method: "Method", likelihood: Any):
        super().__init__()
        self.modes = [module.training for module in model.modules()]
        self.model, self.method, self.likelihood = model, method, likelihood
        self.spec, self.hub = spec, Hub()
        for layer, site in enumerate(spec.sites):
            model.get_submodule(site.name).register_forward_hook(SiteHook(self.hub, layer))
        self.training = model.training
        method.train(model.training)

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.spec.sites

    def forward(self, *args, **kwargs):
        """The model's own output under mean masks; see the class."""
        x = small_features(self, [args, kwargs])
        handler = SiteHandler(self, source="mean", x=x)
        with self.handling(handler):
            output = self.model(*args, **kwargs)
        return handler.finish(output)

    @contextlib.contextmanager
    def handling(self, handler: Handler) -> Iterator[None]:
        """Let `handler` replace the output of each site inside the block.

        Args:
            handler: `handler(layer, h, real)` gives what takes the place of h; `real` is what a
                site of class `Tokens` was told, else None.
        """
        self.hub.handler = handler
        try:
            yield
        finally:
            self.hub.handler = None

    def logits(self, output: Any) -> Tensor:
        """The (B, K) logits in the model's output."""
        return pick(output, self.spec.output)

    def detach(self) -> nn.Module:
        """Take hooks and masks off again.

        Returns:
            The model; its modes are those it had at `attach`.
        """
        for module in self.model.modules():
            hooks = module._forward_hooks
            for key in [k for k, h in hooks.items() if getattr(h, "hub", None) is self.hub]:
                del hooks[key]
        for module, mode in zip(self.model.modules(), self.modes, strict=True):
            module.training = mode
        return self.model

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *exc) -> None:
        self.detach()

    def __repr__(self) -> str:
        where = ", ".join(f"{s.name} ({s.tokens or 1}×{s.width})" for s in self.sites)
        return f"Attached({type(self.model).__name__}, {self.method!r}, sites: {where})"


def put_masks(model: nn.Module, spec: Spec, method: "Method", likelihood: Any) -> Attached:
    """Build the method for these sites of a bare model, on its device, and attach it."""
    method.build(spec, model)
    method.to(device_of(model))
    return Attached(model, spec, method, likelihood or Categorical())


def check_bare(model: nn.Module) -> None:
    """Raise ValueError where the model has masks already."""
    if any(isinstance(h, SiteHook) for m in model.modules() for h in m._forward_hooks.values()):
        raise ValueError("this model already has masks; call net.detach() on the old net first")
