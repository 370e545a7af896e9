"""A model with masks."""

import contextlib
import copy
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gfo.core.batch import Tokens, device_of
from gfo.core.handler import SiteHandler, small_features
from gfo.core.likelihood import Categorical, Likelihood
from gfo.core.noise import step_key
from gfo.core.rates import learning_rates
from gfo.core.sites import Site, Spec, pick, set_modes

if TYPE_CHECKING:
    from gfo.methods.base import Loss, Method

BARE_CALL = (
    "net(x) in train mode: its gradient trains the model under mean masks and never the masks; "
    "use net.loss(x, y, n=…), or torch.no_grad() if no gradient is wanted"
)
Handler = Callable[[int, Tensor, Tensor | None], Tensor]  # (layer, h, real) -> masked h
LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # of each module in a network


class Running(threading.local):
    """The masked pass of one network that runs in this thread, if one does."""

    handler: Handler | None = None


class Hub:
    """Where the hooks of one network find the masked pass that runs in their thread, if any.

    Args:
        modes: Of the model's modules at `attach`, by name: a deep copy of a part of the model shall
            not take the whole along.
    """

    def __init__(self, modes: dict[str, bool]):
        self.running, self.locks, self.modes = Running(), [], modes

    def __reduce__(self):  # a copy, or what a file holds, has locks of its own and runs no pass
        return Hub, (self.modes,)

    @contextlib.contextmanager
    def turn(self, model: nn.Module) -> Iterator[None]:
        """Takes the locks of this network and of all that share modules with it, in one order."""
        if not self.locks:
            own, modules = threading.RLock(), model.modules()
            self.locks = sorted({LOCKS.setdefault(m, own) for m in modules}, key=id)
        with contextlib.ExitStack() as held:
            for lock in self.locks:
                held.enter_context(lock)
            yield

    def leave(self, model: nn.Module, *once: nn.Module) -> None:
        """Take this network's hooks off a model, and off modules that were once in it; the modes
        are those at `attach`. A model that has changed since is no matter."""
        with self.turn(model):
            for module in (*model.modules(), *once):
                hooks = module._forward_hooks
                for key in [k for k, h in hooks.items() if getattr(h, "hub", None) is self]:
                    del hooks[key]
            set_modes([(m, self.modes.get(name, m.training)) for name, m in model.named_modules()])


class SiteHook:
    """The forward hook of one site.

    An object, not a closure, so that `copy.deepcopy` of the network takes the hook along and the
    copy's hooks know the copy's hub.
    """

    def __init__(self, hub: Hub, layer: int):
        self.hub, self.layer = hub, layer

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        handler = self.hub.running.handler
        # in a backward pass checkpointed modules run again
        if handler is None and torch._C._current_graph_task_id() != -1:
            what = f"site {self.layer} runs again in the backward pass, without its mask"
            raise ValueError(f"{what}: switch activation checkpointing off where a site is inside")
        real = args[1] if isinstance(module, Tokens) and len(args) > 1 else None
        return None if handler is None else handler(self.layer, output, real)


class Attached(nn.Module):
    """A model with masks: what `attach` returns.

    A bare call `net(x)` is never a random draw. It is the model's own output, in the model's own
    structure, with each mask replaced by its keep-probability under the test-time policy (the
    weight-scaling rule of Srivastava et al., 2014): one pass, the same every time, in train() and
    eval() alike as far as the model's own modules allow. The mask-averaged predictive is
    `gfo.predict(net, x)`.

    Threads may share a network, or networks modules: whatever runs one or flips its modes holds its
    lock, so calls from several threads take turns and answer as from one. Training of your own, or
    a change of weights, takes its turn inside `with net.exclusive():`. The bare `net.model(x)`
    takes no turn.

    Training is `gfo.fit`, or a loop of your own over `net.loss` and `net.param_groups()`. The
    gradient of a bare call trains the model under mean masks and the masks not at all: the first
    such call in train mode warns.

    Call it with `with gfo.attach(...) as net:` and the model is as it was on leaving the block.
    """

    warned = False  # of a bare call with gradients

    def __init__(self, model: nn.Module, spec: Spec, method: "Method", likelihood: Likelihood):
        super().__init__()
        self.model, self.method, self.likelihood = model, method, likelihood
        self.spec = spec
        self.hub = Hub({name: module.training for name, module in model.named_modules()})
        self.seen: set[tuple] = set()  # shapes and number formats of inputs that have run
        self.masked = [model.get_submodule(site.name) for site in spec.sites]
        for layer, module in enumerate(self.masked):
            module.register_forward_hook(SiteHook(self.hub, layer))
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
            output = handler.finish(self.model(*args, **kwargs))
        if self.training and not self.warned and torch.is_grad_enabled() and self.method.stochastic:
            self.warned = True
            warnings.warn(BARE_CALL, stacklevel=4)  # two frames are torch's
        return output

    def loss(
        self, x: Any, y: Any, *, n: int, seed: int | None = None, step: Any = None,
        generator: torch.Generator | None = None, shard: tuple[int, int] = (0, 1),
    ) -> "Loss":  # fmt: skip
        """The method's loss of one batch, for a training loop of your own::

            loss = net.loss(x, y, n=len(train))
            loss.total.backward()

        The modes are yours: `net.train()` before the loop. Autocast, clipping and accumulation work
        as ever. (A backbone's own dropout draws from torch's global generator in any case.)

        Args:
            x: Inputs as `attach` saw them; NumPy arrays will do.
            y: Labels.
            n: Size of the training set.
            seed: With `step`, masks come from (seed, step), whatever ran before; 0 if left out.
            step: A whole number, or a tuple of some: `gfo.fit` counts (epoch, batch) from 0.
            generator: Without `step`, masks come from this, None for torch's global generator: one
                number per call.
            shard: (rank, world) where several processes hold equal parts of one batch: each row
                gets the masks it would get in the whole batch from the same (seed, step). Parts one
                after the other in one process are right too, but for `GFlowOut(anneal=…)`.

        Returns:
            A `Loss`: `total` to call `backward` on, `parts` in nats ("tb", "vargrad"
            and "subtb" in nats², of ID-GFlowOut by n), and `info`.

        Raises:
            ValueError: For a batch that does not fit, n < 1, a shard that is none, or noise from
                two sources.
        """
        return self.method.loss_of(self, x, y, n, step_key(seed, step, generator), shard)

    def param_groups(
        self, lr: Mapping[str, float] | None = None, backbone: bool = True
    ) -> list[dict[str, Any]]:
        """What a torch optimiser takes: `torch.optim.Adam(net.param_groups())`.

        Args:
            lr: Rates of "backbone", "masks", "log_z" other than 1e-3, 1e-3, 1e-2.
            backbone: False leaves the model's own parameters out (freezing them is yours), and in
                what the likelihood learns.

        Returns:
            A group with "params", "lr" and "name" for each of the three that has parameters. What a
            likelihood learns is in "backbone".

        Raises:
            ValueError: Where there is nothing to train, and for a bad `lr` or `backbone`.
        """
        if backbone not in (True, False):
            raise ValueError(f"backbone is {backbone!r}, needs to be True or False")
        rates, masks = learning_rates(lr), self.method.param_groups()
        own = [*(self.model.parameters() if backbone else ()), *self.likelihood.parameters()]
        groups = ({"backbone": own} if own else {}) | masks
        if not groups:
            raise ValueError(f"{self.method.name} has no mask parameters: nothing to train")
        return [{"params": p, "lr": rates[name], "name": name} for name, p in groups.items()]

    def exclusive(self) -> contextlib.AbstractContextManager:
        """Inside the block no other thread runs or changes this network; it may be nested.

        Compiled code takes no lock: what calls it does, as `gfo.fit` does for each step.
        """
        compiling = torch.compiler.is_compiling()
        return contextlib.nullcontext() if compiling else self.hub.turn(self.model)

    @contextlib.contextmanager
    def handling(self, handler: Handler) -> Iterator[None]:
        """Let `handler` replace the output of each site inside the block.

        Args:
            handler: `handler(layer, h, real)` gives what takes the place of h; `real` is what a
                site of class `Tokens` was told, else None.
        """
        with self.exclusive():
            before, self.hub.running.handler = self.hub.running.handler, handler
            try:
                yield
            finally:
                self.hub.running.handler = before

    def logits(self, output: Any) -> Tensor:
        """The outputs (B, K, …) that the likelihood reads, in the model's output."""
        return pick(output, self.spec.output)

    def detach(self) -> nn.Module:
        """Take hooks and masks off again.

        Returns:
            The model; its modes are those it had at `attach`.
        """
        self.hub.leave(self.model, *self.masked)
        return self.model

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *exc) -> None:
        self.detach()

    def __repr__(self) -> str:
        where = ", ".join(f"{s.name} ({s.tokens or 1}×{s.width})" for s in self.sites)
        return f"Attached({type(self.model).__name__}, {self.method!r}, sites: {where})"


def put_masks(model: nn.Module, spec: Spec, method: "Method", likelihood: Any) -> Attached:
    """Build likelihood and method for these sites of a bare model, on its device; attach them."""
    if not isinstance(likelihood, Likelihood | None):
        given = f"likelihood is {likelihood!r}"
        raise ValueError(f"{given}, needs to be an object such as gfo.Categorical()")
    likelihood = copy.deepcopy(likelihood or Categorical())  # what it learns belongs to one net
    if likelihood.outputs != spec.outputs:  # else another net's, with what it has learned there
        likelihood.build(spec.outputs)
    spec = spec._replace(classes=likelihood.size)
    method.build(spec, model)
    for part in (method, likelihood):
        part.to(device_of(model))
    return Attached(model, spec, method, likelihood)


def hubs(model: nn.Module) -> list[Hub]:
    """The hubs of the networks whose masks are on a model."""
    hooks = [h for m in model.modules() for h in m._forward_hooks.values()]
    return list(dict.fromkeys(h.hub for h in hooks if isinstance(h, SiteHook)))


def check_bare(model: nn.Module) -> None:
    """Raise ValueError where the model has masks already."""
    if hubs(model):
        raise ValueError("this model already has masks; call gfo.detach(model) first")
