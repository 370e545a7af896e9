"""Put masks behind named modules of any torch model, and take them off again."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .likelihood import Categorical
from .tokens import Tokens, features
from .tree import call, device_of, leaves, rows, to_device, tree_map

SMALL = 4096  # log Z reads x itself up to this many numbers an example

DEFAULT_AXES = {2: "BC", 3: "BTC", 4: "BCHW"}
# Modules whose output of three axes has the channels in the middle: a mask bit a channel.
CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)


Visiting = Callable[[int, Tensor, Tensor | None], Tensor]  # (layer, h, real) -> masked h


class Site(NamedTuple):
    """One place where a mask acts. `axes` names each axis of the module's output: B batch,
    T token (a mask each), C feature; any other letter is shared by one mask bit."""

    name: str
    axes: str
    width: int
    tokens: int | None

    def pool(self, h: Tensor) -> Tensor:
        """An activation as generators read it: (B, C) or (B, T, C), mean over shared axes."""
        shared = [i for i, a in enumerate(self.axes) if a not in "BTC"]
        left = [a for a in self.axes if a in "BTC"]
        h = h.mean(shared) if shared else h
        order = [left.index(a) for a in "BTC" if a in left]
        return h if order == sorted(order) else h.permute(order)  # -> (B, C) or (B, T, C)

    def spread(self, mask: Tensor) -> Tensor:
        """A mask (B, C) or (B, T, C) in a shape that broadcasts over the module's output."""
        names = [a for a in "BTC" if a in self.axes]
        left = [a for a in self.axes if a in "BTC"]
        if names != left:
            mask = mask.permute([names.index(a) for a in left])
        index = tuple(slice(None) if a in "BTC" else None for a in self.axes)
        return mask[index]  # (B, C) -> e.g. (B, C, 1, 1)


class Spec(NamedTuple):
    """What one look at the example found; plain numbers and strings, so that a file can hold it."""

    sites: tuple[Site, ...]
    classes: int
    shapes: tuple[tuple[int, ...], ...]  # of each input tensor, without the batch axis
    x_size: int | None  # numbers an example of `features`, where x has few floats
    row_bytes: int  # of the largest activation of one example
    batched: tuple[str, ...]  # modules whose output is a tensor with the batch on axis 0
    output: str | int | None

    @property
    def has_tokens(self) -> bool:
        """Whether some site has a mask a token."""
        return any(site.tokens for site in self.sites)

    @property
    def log_z_size(self) -> int:
        """Numbers an example that log Z reads: x where x is one small float tensor; else the first
        site's activation, and what x has of floats beside it."""
        x_size = self.x_size or 0
        return x_size if x_size and len(self.shapes) == 1 else x_size + self.sites[0].width


class Hub:
    """Where the hooks of one network find the masked pass that is running, if one is."""

    def __init__(self):
        self.visitor: Visiting | None = None


class SiteHook:
    """The forward hook of one site. An object, not a closure, so that `copy.deepcopy` of the
    network takes the hook along and the copy's hooks know the copy's hub."""

    def __init__(self, hub: Hub, layer: int):
        self.hub, self.layer = hub, layer

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        visitor = self.hub.visitor
        if visitor is None and recomputing():
            raise ValueError(
                f"site {self.layer} runs again in the backward pass, without its mask: switch "
                "activation checkpointing off where a site is inside"
            )
        real = args[1] if isinstance(module, Tokens) and len(args) > 1 else None
        return None if visitor is None else visitor(self.layer, output, real)


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

    def __init__(self, model: nn.Module, spec: Spec, method: nn.Module, likelihood: Any):
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
        from .masked_pass import Visitor, small_features  # the pass builds on this module

        x = small_features(self, [args, kwargs])
        visitor = Visitor(self, source="mean", x=x)
        with self.visiting(visitor):
            output = self.model(*args, **kwargs)
        return visitor.finish(output)

    @contextlib.contextmanager
    def visiting(self, visitor: Visiting) -> Iterator[None]:
        """Let `visitor(layer, h, real)` replace the output of each site inside the block; `real` is
        what a site of class `Tokens` was told, else None."""
        self.hub.visitor = visitor
        try:
            yield
        finally:
            self.hub.visitor = None

    def logits(self, output: Any) -> Tensor:
        """The (B, K) logits in the model's output."""
        return pick(output, self.spec.output)

    def detach(self) -> nn.Module:
        """Take hooks and masks off and return the model; its modes are those it had at `attach`."""
        for module in self.model.modules():
            hooks = module._forward_hooks
            for key in [k for k, h in hooks.items() if getattr(h, "hub", None) is self.hub]:
                del hooks[key]
        for module, mode in zip(self.model.modules(), self.modes, strict=True):
            module.training = mode
        return self.model

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *exc) -> None:
        self.detach()

    def __repr__(self) -> str:
        where = ", ".join(f"{s.name} ({s.tokens or 1}×{s.width})" for s in self.sites)
        return f"Attached({type(self.model).__name__}, {self.method!r}, sites: {where})"


def attach(
    model: nn.Module,
    sites: str | Sequence[str],
    method: nn.Module | str,
    example: Any,
    *,
    axes: Mapping[str, Sequence[str]] | None = None,
    output: str | int | None = None,
    likelihood: Any = None,
) -> Attached:
    """Put masks behind modules of `model`.

    model: any module whose logits are (B, K).
    sites: module names, or one pattern such as "layer*.bn2" (`*` also matches dots). Masks are
        unit-wise for outputs (B, C), channel-wise for (B, C, H, W) and for the (B, C, L) of a
        `Conv1d` or `BatchNorm1d`, per token and feature for any other output of three axes, which
        is taken for (B, T, C); where tokens may be padding, a site of class `gfo.tokens.Tokens`
        says so.
    method: `gfo.GFlowOut()`, …, or a registered name such as "gflowout".
    example: an input batch (a tensor, or a tuple, list or dict of tensors), run a few times, also
        doubled, without gradient in eval mode, to find widths, token counts, the number of classes
        and what of a pass can be shared by many masks.
    axes: for a site whose shape cannot say it, a letter an axis: ("T", "B", "C"),
        ("B", "C", "L"), ("B", "H", "W", "C"). T has a mask a token, other letters share one.
    output: where the logits are, if the model returns a tuple (position) or dict (key).
    likelihood: what the logits say about y: `gfo.Categorical()` by default, with class weights
        `gfo.Categorical([1.0, 9.0])`, for graded answers `gfo.SoftTargets()`.

    Raises ValueError, naming the module, for a pattern that matches nothing and for a site that
    is never called, is called twice in one pass, returns no tensor, or whose batch is not where
    its axes say.
    """
    from .methods import create
    from .prefix import replays  # which builds on this module

    method = create(method) if isinstance(method, str) else method
    names = find_sites(model, sites)
    check_bare(model)
    spec = inspect(model, names, example, axes or {}, output)
    method.build(spec, model)
    method.to(device_of(model))
    net = Attached(model, spec, method, likelihood or Categorical())
    if not replays(net, example):
        net.spec = spec._replace(batched=())
    return net


def check_bare(model: nn.Module) -> None:
    """ValueError where the model has masks already."""
    if any(isinstance(h, SiteHook) for m in model.modules() for h in m._forward_hooks.values()):
        raise ValueError("this model already has masks; call net.detach() on the old net first")


def find_sites(model: nn.Module, sites: str | Sequence[str]) -> list[str]:
    """Resolve module names or one pattern against the model's modules."""
    known = [name for name, _ in model.named_modules() if name]
    first = {module: name for name, module in model.named_modules()}
    again = dict(model.named_modules(remove_duplicate=False))
    if isinstance(sites, str):
        found = [name for name in known if fnmatchcase(name, sites)]
        if not found:
            near = difflib.get_close_matches(sites, known, n=1, cutoff=0.0)
            raise ValueError(f"sites={sites!r} matches no module; nearest name: {near}")
        return found
    for name in sites:
        if name in again and name not in known:
            raise ValueError(
                f"{name!r} is a second name of module {first[again[name]]!r}: use that"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"the model has no module {name!r}; nearest name: {near}")
    if not sites:
        raise ValueError("sites is empty: name at least one module, or one pattern")
    return list(dict.fromkeys(sites))


def pick(output: Any, key: str | int | None) -> Tensor:
    """The logits in a model's output; ValueError if they are not a (B, K) tensor."""
    if key is not None:
        try:
            output = output[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"the model's output has nothing under output={key!r}") from None
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the model returns a {type(output).__name__}; say where its logits are: output=…"
        )
    if output.dim() != 2:
        raise ValueError(f"logits have shape {tuple(output.shape)}, need (B, K)")
    return output


def inspect(model: nn.Module, names: Sequence[str], example: Any, axes: Mapping, output) -> Spec:
    """Run the example, once as it is and once doubled, and write down what the sites look like."""
    if not leaves(example):
        raise ValueError(f"example is a {type(example).__name__} without a tensor: pass tensors")
    if rows(example) < 1:
        raise ValueError("example is empty: pass a batch of at least one input")
    example = to_device(example, device_of(model))
    for name in axes:
        if name not in names:
            raise ValueError(f"axes names {name!r}, which is not a site; sites: {', '.join(names)}")
    result, calls = trace(model, example)
    _, double = trace(model, tree_map(lambda t: torch.cat([t, t]), example))
    for name in names:
        check_site(name, [out for called, out in calls if called == name])
    order = [called for called, _ in calls if called in names]
    outputs = dict(calls)
    sites = tuple(
        describe(name, model.get_submodule(name), outputs[name], axes.get(name)) for name in order
    )
    for site in sites:
        check_batch(site, outputs[site.name], dict(double)[site.name], rows(example))
    floats = features(example, any(site.tokens for site in sites))
    small = floats is not None and floats.shape[1] <= SMALL
    batch = rows(example)
    growing = (
        one.numel()
        for (_, one), (_, two) in zip(calls, double, strict=True)
        if plain(one) and plain(two) and two.numel() == 2 * one.numel()
    )
    return Spec(
        sites=sites,
        classes=pick(result, output).shape[1],
        shapes=tuple(tuple(t.shape[1:]) for t in leaves(example)),
        x_size=floats.shape[1] if small else None,
        row_bytes=4 * max(growing, default=0) // batch or 1,
        batched=batched_modules(calls, double, batch),
        output=output,
    )


def plain(output: Any) -> bool:
    """Whether it is a tensor with a shape, as the nested ones of a TransformerEncoder are not."""
    return isinstance(output, Tensor) and not output.is_nested


def trace(model: nn.Module, x: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Run `model` on x without leaving a mark; return its output and each (module, output)."""
    calls: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: calls.append((name, out)))
        for name, module in model.named_modules()
    ]
    try:
        with untouched(model), torch.no_grad():
            return call(model, x), calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no buffer moves; each module's own mode after it."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextlib.contextmanager
def unmoved(module: nn.Module) -> Iterator[None]:
    """Modes stay inside the block, and what a pass does to buffers is undone after it."""
    held = [(m, n, b) for m in module.modules() for n, b in m._buffers.items() if b is not None]
    for m, name, buffer in held:
        m._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for m, name, buffer in held:
            m._buffers[name] = buffer


def check_site(name: str, outputs: list) -> None:
    """ValueError unless a site's calls in one pass gave exactly one tensor."""
    if not outputs:
        raise ValueError(f"site {name!r} is never called on the example: choose a module that runs")
    if len(outputs) > 1:
        raise ValueError(
            f"site {name!r} is called {len(outputs)} times in one pass: give each call a module"
        )
    if not isinstance(outputs[0], Tensor):
        raise ValueError(
            f"site {name!r} returns a {type(outputs[0]).__name__}, no tensor: choose a module "
            "whose output is a tensor, such as the dropout behind it"
        )
    if outputs[0].is_nested:
        raise ValueError(
            f"site {name!r} returns a nested tensor: build nn.TransformerEncoder with "
            "enable_nested_tensor=False"
        )


def usual_axes(module: nn.Module, h: Tensor) -> str | None:
    """The axes of a module's output h, as far as its class and their number tell."""
    if isinstance(module, CHANNELS_FIRST) and h.dim() == 3:
        return "BCL"
    return DEFAULT_AXES.get(h.dim())


def describe(name: str, module: nn.Module, h: Tensor, axes: Sequence[str] | None) -> Site:
    """A site's axes, width and tokens from its output on the example."""
    letters = "".join(axes) if axes is not None else usual_axes(module, h)
    if letters is None:
        raise ValueError(f"site {name!r} has shape {tuple(h.shape)}: name its axes with axes=…")
    if len(letters) != h.dim() or letters.count("B") != 1 or letters.count("C") != 1:
        raise ValueError(
            f"axes {letters!r} do not fit site {name!r} of shape {tuple(h.shape)}: one letter an "
            "axis, B and C once each"
        )
    tokens = h.shape[letters.index("T")] if "T" in letters else None
    return Site(name, letters, h.shape[letters.index("C")], tokens)


def check_batch(site: Site, one: Tensor, two: Tensor, batch: int) -> None:
    """ValueError unless axis "B" of a site holds the rows of the example, and of twice those."""
    axis = site.axes.index("B")
    if (one.shape[axis], two.shape[axis]) != (batch, 2 * batch):
        raise ValueError(
            f"axis {axis} of site {site.name!r}, of shape {tuple(one.shape)}, is not the batch of "
            f"{batch}: name its axes with axes=…, or choose another module"
        )


def batched_modules(calls: list, double: list, batch: int) -> tuple[str, ...]:
    """Modules whose every output is a tensor that grows with the batch on axis 0, and only there:
    their rows may be computed once and repeated."""
    verdict: dict[str, bool] = {}
    for (name, one), (_, two) in zip(calls, double, strict=True):
        grows = (
            plain(one)
            and plain(two)
            and one.dim() > 0
            and one.shape[0] == batch
            and two.shape == (2 * batch, *one.shape[1:])
        )
        verdict[name] = verdict.get(name, True) and grows
    return tuple(name for name, fine in verdict.items() if fine)
