"""Input checks of the public functions: one line that names the cause and the cure."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gfo.core.attached import Attached
from gfo.core.batch import as_tensors, device_of, kinds, leaves, rows, tree_map
from gfo.core.ensemble import Ensemble
from gfo.core.masked_pass import drawn_pass


def check_net(net: Any) -> None:
    """Raise ValueError unless `net` comes from `attach`."""
    if isinstance(net, Ensemble):
        raise ValueError("an Ensemble only predicts: ask a member for this, ensemble.nets[0]")
    if not isinstance(net, Attached):
        raise ValueError(f"need a net from gfo.attach, got a {type(net).__name__}")


def check_functions(**given: Any) -> None:
    """Raise ValueError unless each argument is None or can be called."""
    for name, f in ((k, f) for k, f in given.items() if not (f is None or callable(f))):
        raise ValueError(f"{name}={f!r} cannot be called: pass a function")


def check_x(net: Attached, x: Any) -> Any:
    """Check a batch.

    What has other sizes than the example, or another number format, is tried on two rows first: a
    model whose sites pool may take any length or size.

    Args:
        net: The network that reads it.
        x: Tensors or NumPy arrays.

    Returns:
        x as the network takes it: tensors, floats of a format that the model does not have in the
        model's.

    Raises:
        ValueError: Unless x has the tensors of the example, with as many axes, as many rows each,
            at least one, real numbers, no NaN or inf, and the network runs on them.
    """
    x = as_tensors(x)
    parts, shapes = leaves(x), net.spec.shapes
    if len(parts) != len(shapes):
        what = f"{len(parts)} tensors" if parts else f"a {type(x).__name__} and no tensor"
        raise ValueError(f"x has {what}, the example had {len(shapes)}")
    for part, shape in zip(parts, shapes, strict=True):
        if part.is_nested or part.layout != torch.strided:
            raise ValueError("x is sparse or nested: pass x.to_dense(), or pad it")
        if part.is_complex():
            raise ValueError("x is complex: pass torch.view_as_real(x), say")
        if part.dim() != len(shape) + 1:
            raise ValueError(f"x has shape {tuple(part.shape)}, the example had (B, *{shape})")
        if len(part) == 0:
            raise ValueError("x is an empty batch: pass at least one row")
        if len(part) != len(parts[0]):
            raise ValueError(f"x mixes batches of {len(parts[0])} and {len(part)} rows")
        if part.is_floating_point() and not torch.isfinite(part).all():
            raise ValueError("x contains NaN or inf: clean the input first")
    formats = [p.dtype for p in net.model.parameters() if p.is_floating_point()]
    foreign = {t.dtype for t in parts if t.is_floating_point()} - {*formats} if formats else ()
    x = tree_map(lambda t: t.to(formats[0]) if t.dtype in foreign else t, x)
    if kinds(x) not in net.seen:
        try_two_rows(net, x)
    return x


def try_two_rows(net: Attached, x: Any) -> None:
    """Raise ValueError, saying what was new, unless the network runs on two rows of x."""
    few = tree_map(lambda t: t[:2].to(device_of(net)), x)
    try:
        drawn_pass(net, few, None, "test", 0, "try")
    except Exception as error:  # whatever a model raises
        pairs = zip(leaves(x), net.spec.shapes, strict=True)
        other = [(tuple(t.shape), shape) for t, shape in pairs if tuple(t.shape[1:]) != shape]
        said = (str(error) or type(error).__name__).splitlines()[0]
        formats = ", ".join(str(t.dtype).removeprefix("torch.") for t in leaves(x))
        new = f"x is of {formats}, which the model does not take (x.float()?)"
        if other:
            new = f"x has shape {other[0][0]}, the example had (B, *{other[0][1]})"
        raise ValueError(f"{new}: {said}") from None
    net.seen.add(kinds(x))


def check_finite(net: Attached, *answers: Tensor | None) -> None:
    """Raise ValueError, naming the cause, where an answer of the network holds NaN or +inf."""
    if not any(bool((t.isnan() | t.isposinf()).any()) for t in answers if t is not None):
        return
    name = next((k for k, v in net.named_parameters() if not v.isfinite().all()), None)
    cause = "numbers overflow on the way: see the scale of x and of the weights"
    if name is not None:
        cause = f"its {name!r} is not finite: load its last good weights, or train at a lower rate"
    raise ValueError(f"the network answers NaN: {cause}")


def check_y(net: Attached, x: Any, y: Any) -> Tensor:
    """y as the likelihood takes it: a tensor, floats in float32.

    Raises:
        ValueError: Unless it fits the network's likelihood and x.
    """
    y = as_tensors(y)
    if not isinstance(y, Tensor):
        raise ValueError(f"y is a {type(y).__name__}, needs a tensor: torch.as_tensor(y)")
    y = y.float() if y.is_floating_point() else y
    outputs, parts = net.likelihood.outputs, zip(leaves(x), net.spec.shapes, strict=True)
    if any(tuple(part.shape[1:]) != shape for part, shape in parts):  # only the answer shows it
        outputs = (outputs[0], *[None] * (len(outputs) - 1))
    net.likelihood.check(y, rows(x), outputs)
    return y


def check_batch(net: Any, x: Any, y: Any) -> tuple[Any, Tensor]:
    """(x, y) as the network takes them: see `check_net`, `check_x` and `check_y`."""
    check_net(net)
    x = check_x(net, x)
    return x, check_y(net, x, y)


def check_whole(name: str, number: Any, low: int = 0) -> int:
    """`number` as an int; ValueError, naming it, unless it is a whole number from `low` on."""
    if not isinstance(number, Integral) or number < low:
        raise ValueError(f"{name} is {number!r}, needs to be at least {low}, a whole number")
    return int(number)


def check_counts(**counts: int) -> None:
    """Raise ValueError, naming it, for a number of something that is below 1."""
    for name, count in counts.items():
        check_whole(name, count, 1)


def check_masks(net: Attached, masks: Sequence[Tensor], lead: tuple[int, ...]) -> list[Tensor]:
    """`masks` as float tensors, one per site.

    Args:
        net: The network they are for.
        masks: One per site in execution order, ``(*lead, C_l)`` or
            ``(*lead, T_l, C_l)``, of 0 and 1.
        lead: The leading shape of each.

    Raises:
        ValueError: For another number of masks, another shape, or other values.
    """
    masks = as_tensors(list(masks))
    if len(masks) != len(net.sites):
        raise ValueError(f"{len(masks)} masks given, the network has {len(net.sites)} sites")
    for mask, site in zip(masks, net.sites, strict=True):
        if not isinstance(mask, Tensor):
            raise ValueError(f"mask of {site.name!r} is a {type(mask).__name__}, needs a tensor")
        want = (*lead, site.width) if site.tokens is None else (*lead, site.tokens, site.width)
        few = range(1, site.tokens or 1)  # a batch may have fewer tokens
        if tuple(mask.shape) not in (want, *[(*lead, tokens, site.width) for tokens in few]):
            raise ValueError(f"mask of {site.name!r} has shape {tuple(mask.shape)}, needs {want}")
        if net.method.binary and not ((mask == 0) | (mask == 1)).all():
            raise ValueError(f"mask of {site.name!r} holds values other than 0 and 1")
    return [mask.float() for mask in masks]
