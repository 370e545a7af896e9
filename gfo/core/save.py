"""Files: a network with its masks, written atomically, read back without running code."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gfo.core.attached import Attached, check_bare, put_masks
from gfo.core.checks import check_net
from gfo.core.files import write_atomically
from gfo.core.likelihood import Categorical
from gfo.core.registry import METHODS
from gfo.core.sites import Site, Spec


def describe(net: Attached) -> dict[str, Any]:
    """What must agree before weights may be loaded, as plain data.

    The default likelihood goes unsaid, as in files that were written before there were others.
    """
    about = {"spec": _plain(net.spec), "method": net.method.name, "config": net.method.config}
    named = type(net.likelihood).__repr__ is not object.__repr__  # else it is an address
    said = repr(net.likelihood) if named else type(net.likelihood).__qualname__
    return about if said == repr(Categorical()) else about | {"likelihood": said}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def save(net: Attached, path: str | Path) -> None:
    """Write weights, buffers, sites and method of `net` to `path`.

    Raises:
        ValueError: Where `load` would make another method of it: one whose class is in no registry.
    """
    check_net(net)
    method = net.method
    if type(METHODS[method.name](**method.config)) is not type(method):
        raise ValueError(
            f"{type(method).__name__} is not registered, {method.name!r} is another class: give it "
            "a name of its own with @METHODS.register"
        )
    content = {"gfo": describe(net), "state": net.state_dict()}
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load(path: str | Path, model: nn.Module, *, likelihood: Any = None) -> Attached:
    """Read what `save` wrote.

    Args:
        path: The file.
        model: A bare model of the same architecture, which gets the masks and the weights, or a net
            from `attach`, which gets the weights.
        likelihood: As it was in `attach`.

    Returns:
        The attached net, on the model's device.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where the file is no gfo file or belongs to another architecture or method.
    """
    content = read(path)
    about = content["gfo"]
    net = model if isinstance(model, Attached) else _attach_as(about, model, likelihood)
    try:
        check_same(about, describe(net), path)
        load_state(net, content["state"], path)
    except ValueError:
        if net is not model:
            net.detach()
        raise
    return net


def read(path: str | Path) -> dict:
    """The content of a gfo file.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where it is damaged or no gfo file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: save one first with gfo.save(net, path)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is damaged or no gfo file ({type(error).__name__})"
        ) from None
    if not isinstance(content, dict) or "gfo" not in content:
        raise ValueError(f"{str(path)!r} was not written by gfo.save")
    return content


def check_same(there: dict, here: dict, path: str | Path) -> None:
    """Raise ValueError naming the first entry in which a file and this network differ."""
    for key in here | there:
        one, other = (side.get(key, "the default") for side in (there, here))
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):  # the entries that differ
            names = [n for n in one | other if one.get(n) != other.get(n)]
            one, other = ({n: side.get(n) for n in names} for side in (one, other))
        raise ValueError(f"{str(path)!r} holds another {key}: {one} there, {other} here")


def load_state(net: Attached, state: dict, path: str | Path) -> None:
    """Load weights that have the shapes of this network's; ValueError, before one moves, if not."""
    mine = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    there = {k: tuple(v.shape) for k, v in state.items()}
    for key in mine | there:  # before a weight moves: torch copies what fits, then complains
        if mine.get(key) != there.get(key):
            raise ValueError(
                f"{str(path)!r} holds another architecture: {key} is {there.get(key)} there, "
                f"{mine.get(key)} here"
            )
    net.load_state_dict(state)


def _attach_as(about: dict, model: nn.Module, likelihood: Any) -> Attached:
    sites, classes, shapes, x_size, row_bytes, batched, output = about["spec"]
    for name, *_ in sites:
        if name not in dict(model.named_modules()):
            raise ValueError(f"the file has a site {name!r}, which this model lacks")
    spec = Spec(
        tuple(Site(*site) for site in sites), classes, tuple(tuple(s) for s in shapes),
        x_size, row_bytes, tuple(batched), output,
    )  # fmt: skip
    check_bare(model)
    return put_masks(model, spec, METHODS[about["method"]](**about["config"]), likelihood)
