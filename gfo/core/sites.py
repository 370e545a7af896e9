"""Where masks act: what one look at an example finds."""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gfo.core.axes import Axes, Channels, usual_letters
from gfo.core.batch import Tokens, call, device_of, features, leaves, repeat_rows, rows, to_device
from gfo.core.site_checks import check_example, check_site, check_together

LOG_Z_MAX_INPUT = 4096  # log Z reads x itself up to this many numbers per example


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

    @property
    def order(self) -> list[int]:
        """The output's axes, those of B, T and C first."""
        return sorted(range(len(self.axes)), key=lambda i: "BTC".find(self.axes[i]) % 4)

    def pool(self, h: Tensor) -> Tensor:
        """An activation as generators read it: (B, C) or (B, T, C), mean over shared axes."""
        if self.axes in ("BC", "BTC"):
            return h
        shared = [i for i, a in enumerate(self.axes) if a not in "BTC"]
        h = h.mean(shared, keepdim=True) if shared else h
        return h.permute(self.order)[(..., *[0] * len(shared))]

    def spread(self, mask: Tensor) -> Tensor:
        """A mask (B, C) or (B, T, C) in a shape that broadcasts over the module's output."""
        if self.axes in ("BC", "BTC"):
            return mask
        mask = mask[(..., *[None] * (len(self.axes) - mask.dim()))]  # (B, C) -> e.g. (B, C, 1, 1)
        return mask.movedim(list(range(mask.dim())), self.order)


class Spec(NamedTuple):
    """What one look at the example found; plain numbers and strings, so that a file can hold it.

    Attributes:
        sites: In execution order.
        classes: Numbers that policies and log Z read of y: K for labels.
        shapes: Of each input tensor, without the batch axis.
        x_size: Numbers per example of `features`, where x has few floats.
        row_bytes: Of the largest activation of one example.
        batched: Modules whose output is a tensor with the batch on axis 0.
        output: Where the logits are in the model's output.
        outputs: Shape of one example's outputs, (K, …).
        folds: Whether rows do not act on each other, so that masks may be folded into the batch.
    """

    sites: tuple[Site, ...]
    classes: int
    shapes: tuple[tuple[int, ...], ...]
    x_size: int | None
    row_bytes: int
    batched: tuple[str, ...]
    output: str | int | None
    outputs: tuple[int, ...] = ()
    folds: bool = True

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
            second one, and for no names; the nearest name is given. Where a pattern matches a
            module and one inside it, and for TorchScript.
    """
    first = {module: name for name, module in model.named_modules() if name}
    known, again = list(first.values()), dict(model.named_modules(remove_duplicate=False))
    if isinstance(sites, str):
        names = [name for name in known if fnmatchcase(name, sites)] or [sites]
    else:  # numbers name parts of a Sequential
        names = list(map(str, dict.fromkeys(sites if isinstance(sites, Iterable) else ())))
    if not names:
        raise ValueError(f"sites is empty or no names, {sites!r}: name a module or one pattern")
    for name in names:
        if name and name in again and name not in known:
            raise ValueError(f"{name!r} is a second name of module {first[again[name]]!r}: use it")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"sites={sites!r} matches no module {name!r}; nearest name: {near}")
        outer = next((o for o in names if name.startswith(f"{o}.")), None)
        if outer is not None and isinstance(sites, str):
            inner = f"{name!r} inside it, whose masks would act on masked activations"
            cure = "match no container, or name the modules"
            raise ValueError(f"sites={sites!r} matches {outer!r} and {inner}: {cure}")
        if isinstance(model.get_submodule(name), torch.jit.ScriptModule):
            cure = "choose a module outside it, or attach before torch.jit.script"
            raise ValueError(f"site {name!r} is TorchScript, which takes no mask: {cure}")
    return names


def pick(output: Any, key: str | int | None) -> Tensor:
    """The logits in a model's output.

    Args:
        output: What the model returned.
        key: Their position in a tuple or key in a dict; None where the output is the logits, or a
            NamedTuple that has `logits`. A tensor is taken for them either way: some models return
            more in train mode than in eval mode.

    Raises:
        ValueError: If they are no (B, K, …) tensor of floats; it names the keys that there are.
    """
    found, fields = output, getattr(output, "_fields", ())
    key = "logits" if key is None and "logits" in fields else key
    if key is not None and not isinstance(output, Tensor):
        found = None
        with contextlib.suppress(KeyError, IndexError, TypeError):
            found = output[fields.index(key) if key in fields else key]
    if not isinstance(found, Tensor):
        what = f"a {type(output).__name__} without a tensor at output={key!r}{entries(output)}"
        raise ValueError(f"the model returns {what}; say where its logits are: output=…")
    if found.dim() < 2 or not found.is_floating_point():
        raise ValueError(f"logits are {tuple(found.shape)}, {found.dtype}: need floats (B, K, …)")
    return found


def entries(output: Any) -> str:
    """What the parts of a model's output are called, for a message."""
    keys = output if isinstance(output, Mapping) else getattr(output, "_fields", ())
    keys = list(keys) or (list(range(len(output))) if isinstance(output, tuple | list) else [])
    return f", which has {', '.join(map(repr, keys))}" if keys else ""


def inspect(
    model: nn.Module, names: Sequence[str], example: Any, axes: Mapping, output,
    logits_read: bool = True, by_class: bool = True,
) -> Spec:  # fmt: skip
    """Run the example, once as it is and once doubled, and write down what the sites look like.

    Args:
        model: The bare model.
        names: Of its sites.
        example: An input batch.
        axes: Letters of the axes of sites whose shape cannot say them, by name.
        output: Where the logits are in the model's output.
        logits_read: Whether the likelihood takes them for logits.
        by_class: Whether it reads classes from axis 1.

    Raises:
        ValueError: For an example without a row, and a site or logits that cannot be used.
    """
    check_example(example)
    example = to_device(example, device_of(model))
    for name in (name for name in axes if name not in names):
        raise ValueError(f"axes names {name!r}, which is not a site; sites: {', '.join(names)}")
    try:
        result, calls = trace(model, example)
        with Channels() as channels:
            again, double = trace(model, repeat_rows(example, 2))
    except (RuntimeError, IndexError, TypeError) as error:  # another format, shape, or labels too
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"the model does not run on the example, {said}") from error
    called = [name for name, _ in calls]
    if called != [name for name, _ in double]:
        raise ValueError("the model runs other modules in each pass: switch skipping layers off")
    for name in names:
        check_site(name, [out for at, out in calls if at == name])
    logits, twice = pick(result, output), pick(again, output)
    outputs, doubled, batch = dict(calls), dict(double), rows(example)
    if (len(logits), len(twice)) != (batch, 2 * batch):
        raise ValueError(f"axis 0 of the logits {tuple(logits.shape)} is not the batch of {batch}")
    sites = []
    for name in (name for name in called if name in names):
        last = isinstance(model.get_submodule(name), Tokens)  # (B, T, C) by its definition
        found = (2,) if last else channels.known.get(doubled[name]) or ()
        sites.append(describe(name, outputs[name], doubled[name], found, axes.get(name), batch))
    dropped = [name for name in names if doubled[name] in channels.dropped]
    if by_class and logits.dim() > 2 and channels.known.get(twice) == (logits.dim() - 1,):
        raise ValueError(f"logits {tuple(logits.shape)} have classes last: move them to axis 1")
    maker = channels.maker.get(twice, "") if logits_read else None
    check_together({name: outputs[name] for name in names}, logits, dropped, maker)
    floats = features(example, any(site.tokens for site in sites))
    x_size = 0 if floats is None else floats.shape[1]
    pairs = [(name, one, two) for (name, one), (_, two) in zip(calls, double, strict=True)]
    growth = [two.numel() - one.numel() for _, one, two in pairs if plain(one) and plain(two)]
    fixed = {name for name, one, two in pairs if not grows(one, two, batch)}
    return Spec(
        sites=tuple(sites), classes=logits.shape[1], outputs=tuple(logits.shape[1:]), output=output,
        shapes=tuple(tuple(t.shape[1:]) for t in leaves(example)),
        x_size=x_size if 0 < x_size <= LOG_Z_MAX_INPUT else None,
        row_bytes=4 * max(growth, default=0) // batch or 1,
        batched=tuple(name for name in outputs if name not in fixed),
    )  # fmt: skip


def plain(output: Any) -> bool:
    """Whether it is a tensor with a shape, as the nested ones of a TransformerEncoder are not."""
    return isinstance(output, Tensor) and not output.is_nested


def trace(model: nn.Module, x: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Run `model` on x without leaving a mark; return its output and each (module, output)."""
    calls: list[tuple[str, Any]] = []

    def keep(name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        calls.append((name, out))

    with hooked(model, nn.Module.register_forward_hook, keep), eval_mode(model), torch.no_grad():
        return call(model, x), calls


@contextlib.contextmanager
def hooked(model: nn.Module, register: Callable, hook: Callable) -> Iterator[None]:
    """Inside the block each module has the hook, called with its name first; TorchScript takes
    none."""
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.enter_context(register(module, partial(hook, name), with_kwargs=True))
        yield


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no buffer moves; each module's own mode after it."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        set_modes(modes)


def set_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    """Modes of modules, outer ones first, by their own `train`, which may do more than set a flag
    (LoRA merges weights there); then the flags, where two modules hold one or `train` differs."""
    for m, mode in modes:
        if m.training != mode:
            m.train(mode)
    for m, mode in modes:
        m.training = mode


@contextlib.contextmanager
def exchanged(others: Iterable[tuple[dict[str, Any], str, Any]]) -> Iterator[None]:
    """Inside the block dicts have other entries, (dict, key, other), after it what they had."""
    held = []
    try:
        for store, key, other in others:
            held.append((store, key, store.get(key)))
            store[key] = other
        yield
    finally:
        for store, key, own in held:
            store[key] = own
            if own is None:  # it had none
                del store[key]


def preserve_buffers(module: nn.Module) -> contextlib.AbstractContextManager:
    """Modes stay inside the block, and what a pass does to buffers is undone after it."""
    held = [(m._buffers, n, b) for m in module.modules() for n, b in m._buffers.items()]
    return exchanged((of, name, b.clone()) for of, name, b in held if b is not None)


def describe(
    name: str, h: Tensor, doubled: Tensor, channels: Axes, axes: Sequence[str] | None, batch: int
) -> Site:
    """A site's axes, width and tokens from its output on the example.

    Args:
        name: The site's name.
        h: The module's output.
        doubled: That on the doubled example.
        channels: The axes that hold the channels, as far as they are known.
        axes: A letter per axis, None for the usual ones.
        batch: The example's rows.

    Raises:
        ValueError: Where the axes are not known, or do not fit the output, or "B" is not the batch.
    """
    shape, letters = tuple(h.shape), usual_letters(h, channels) if axes is None else "".join(axes)
    if letters is None:
        such = {3: "BTC", 4: "BCHW"}.get(h.dim(), "BCDHW")
        cause = f"site {name!r} has shape {shape}, and nothing tells which axis holds its channels"
        raise ValueError(f"{cause}: name its axes with axes={{{name!r}: {such!r}}}, say")
    if len(letters) != h.dim() or letters.count("B") != 1 or letters.count("C") != 1:
        cause = f"axes {letters!r} do not fit site {name!r} of shape {shape}"
        raise ValueError(f"{cause}: one letter per axis, B and C once each")
    size, axis = dict(zip(letters, shape, strict=True)), letters.index("B")
    if (size["B"], doubled.shape[axis]) != (batch, 2 * batch):
        cause = f"axis {axis} of site {name!r}, of shape {shape}, is not the batch of {batch}"
        raise ValueError(f"{cause}: name its axes with axes=…, or choose another module")
    one, two = (t.movedim(axis, 0).flatten(1).double().sum(1) for t in (h, doubled))
    near = partial(torch.allclose, rtol=1e-4, atol=1e-5)
    if near(two.sort()[0], one.repeat(2).sort()[0]) and not near(two, one.repeat(2)):
        raise ValueError(f"site {name!r} has the rows in another order: choose one outside it")
    return Site(name, letters, size["C"], size.get("T"))


def grows(one: Any, two: Any, batch: int) -> bool:
    """Whether an output is a tensor that grows with the batch on axis 0, and only there.

    Its rows may be computed once and repeated.
    """
    led = plain(one) and plain(two) and one.shape[:1] == (batch,)
    return led and two.shape == (2 * batch, *one.shape[1:])
