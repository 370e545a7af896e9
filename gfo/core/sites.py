"""Where masks act: what one look at an example finds."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gfo.core.batch import call, device_of, features, leaves, repeat_rows, rows, to_device

LOG_Z_MAX_INPUT = 4096  # log Z reads x itself up to this many numbers per example
DEFAULT_AXES = {2: "BC", 3: "BTC", 4: "BCHW"}
# Modules whose output of three axes has the channels in the middle: a mask bit per channel.
CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d)


class Site(NamedTuple):
    """One place where a mask acts.

    Attributes:
        name: The module's name.
        axes: Names each axis of the module's output: B batch, T token (a mask each), C feature; any
            other letter is shared by one mask bit.
        width: C, the mask bits (per token).
        tokens: T in the example, None for a site without tokens.
    """

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
    """What one look at the example found; plain numbers and strings, so that a file can hold it.

    Attributes:
        sites: In execution order.
        classes: K, how many there are.
        shapes: Of each input tensor, without the batch axis.
        x_size: Numbers per example of `features`, where x has few floats.
        row_bytes: Of the largest activation of one example.
        batched: Modules whose output is a tensor with the batch on axis 0.
        output: Where the logits are in the model's output.
    """

    sites: tuple[Site, ...]
    classes: int
    shapes: tuple[tuple[int, ...], ...]
    x_size: int | None
    row_bytes: int
    batched: tuple[str, ...]
    output: str | int | None

    @property
    def has_tokens(self) -> bool:
        """Whether some site has a mask per token."""
        return any(site.tokens for site in self.sites)

    @property
    def log_z_size(self) -> int:
        """Numbers per example that log Z reads.

        x where x is one small float tensor; else the first site's activation, and what x has of
        floats beside it.
        """
        x_size = self.x_size or 0
        return x_size if x_size and len(self.shapes) == 1 else x_size + self.sites[0].width


def find_sites(model: nn.Module, sites: str | Sequence[str]) -> list[str]:
    """Resolve module names or one pattern against the model's modules.

    Raises:
        ValueError: For a pattern that matches nothing, a name that is no module's or a module's
            second one, and for no names; the nearest name is given.
    """
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
    """The logits in a model's output.

    Args:
        output: What the model returned.
        key: Their position in a tuple or key in a dict; None where the output is the logits.

    Raises:
        ValueError: If they are not a (B, K) tensor.
    """
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
    """Run the example, once as it is and once doubled, and write down what the sites look like.

    Args:
        model: The bare model.
        names: Of its sites.
        example: An input batch.
        axes: Letters of the axes of sites whose shape cannot say them, by name.
        output: Where the logits are in the model's output.

    Raises:
        ValueError: For an example without a row, and a site or logits that cannot be used.
    """
    if not leaves(example):
        raise ValueError(f"example is a {type(example).__name__} without a tensor: pass tensors")
    if rows(example) < 1:
        raise ValueError("example is empty: pass a batch of at least one input")
    example = to_device(example, device_of(model))
    for name in axes:
        if name not in names:
            raise ValueError(f"axes names {name!r}, which is not a site; sites: {', '.join(names)}")
    result, calls = trace(model, example)
    _, double = trace(model, repeat_rows(example, 2))
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
    small = floats is not None and floats.shape[1] <= LOG_Z_MAX_INPUT
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
        x_size=floats.shape[1] if floats is not None and small else None,
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
        with eval_mode(model), torch.no_grad():
            return call(model, x), calls
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no buffer moves; each module's own mode after it."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextlib.contextmanager
def preserve_buffers(module: nn.Module) -> Iterator[None]:
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
    """Raise ValueError unless a site's calls in one pass gave exactly one tensor."""
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
    """A site's axes, width and tokens from its output on the example.

    Args:
        name: The site's name.
        module: Its module.
        h: The module's output.
        axes: A letter per axis, None for the usual ones.

    Raises:
        ValueError: Where the axes are not known, or do not fit the output.
    """
    letters = "".join(axes) if axes is not None else usual_axes(module, h)
    if letters is None:
        raise ValueError(f"site {name!r} has shape {tuple(h.shape)}: name its axes with axes=…")
    if len(letters) != h.dim() or letters.count("B") != 1 or letters.count("C") != 1:
        raise ValueError(
            f"axes {letters!r} do not fit site {name!r} of shape {tuple(h.shape)}: one letter per "
            "axis, B and C once each"
        )
    tokens = h.shape[letters.index("T")] if "T" in letters else None
    return Site(name, letters, h.shape[letters.index("C")], tokens)


def check_batch(site: Site, one: Tensor, two: Tensor, batch: int) -> None:
    """Raise ValueError unless axis "B" holds the example's rows, and twice those when doubled."""
    axis = site.axes.index("B")
    if (one.shape[axis], two.shape[axis]) != (batch, 2 * batch):
        raise ValueError(
            f"axis {axis} of site {site.name!r}, of shape {tuple(one.shape)}, is not the batch of "
            f"{batch}: name its axes with axes=…, or choose another module"
        )


def batched_modules(calls: list, double: list, batch: int) -> tuple[str, ...]:
    """Modules whose every output is a tensor that grows with the batch on axis 0, and only there.

    Their rows may be computed once and repeated.
    """
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
