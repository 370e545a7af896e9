"""Files: a network with its masks, written atomically, read back without running code."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gfo.core import __version__
from gfo.core.attached import Attached, check_bare, put_masks
from gfo.core.checks import check_net
from gfo.core.files import write_atomically
from gfo.core.likelihood import Categorical, Likelihood
from gfo.core.registry import METHODS
from gfo.core.sites import Site, Spec

FORMAT = 1  # of files; those without one, written before, have no digest either


def describe(net: Attached) -> dict[str, Any]:
    """What must agree before weights may be loaded, as plain data.

    The default likelihood goes unsaid, as in files that were written before there were others.

    Raises:
        ValueError: For a method that was changed after attach.
    """
    method = net.method
    fresh, names = type(method)(**method.config), {**method.hash_defaults, **method.config}
    if changed := [k for k in names if getattr(fresh, k, 0) != getattr(method, k, 0)]:
        raise ValueError(f"{changed[0]} was set after attach, no file would say so: attach with it")
    about = {"spec": _as(list, net.spec), "method": method.name, "config": method.config}
    named = type(net.likelihood).__repr__ is not object.__repr__  # else it is an address
    said = repr(net.likelihood) if named else type(net.likelihood).__qualname__
    return about if said == repr(Categorical()) else about | {"likelihood": said}


def _as(kind: type, value: Any) -> Any:
    """Nested lists and tuples as lists (a file's), or tuples."""
    return kind(_as(kind, v) for v in value) if isinstance(value, tuple | list) else value


def save(net: Attached, path: str | Path) -> None:
    """Write weights, buffers, sites and method of `net` to `path`, with a digest of them.

    Raises:
        ValueError: Where `load` could not make the same of it (a method whose class is in no
            registry, or that was changed after attach, a quantised module), and where the file
            cannot be written.
    """
    check_net(net)
    method, kind = net.method, type(net.method)
    if type(METHODS[method.name](**method.config)) is not kind:
        other = f"{kind.__name__} is not registered, {method.name!r} is another class"
        raise ValueError(f"{other}: give it a name of its own with @METHODS.register")
    with net.exclusive():
        write_content(path, {"gfo": describe(net), "state": plain_state(net)})


def write_content(path: str | Path, content: dict) -> None:
    """Write what `read` reads back, with the format's version and a digest of it all."""
    content = {"format": FORMAT} | content

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # Python's own says why it fails, torch's does not
            torch.save(content | {"digest": digest(content)}, file)

    write_atomically(path, write)


def digest(content: Any) -> str:
    """SHA-256 of nested dicts, lists and tuples of tensors and plain values, in their order."""
    seen = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            seen.update(f"{value.dtype} {tuple(value.shape)}".encode())
            seen.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping | list | tuple):
            seen.update(f"{len(value)} of".encode())
            for part in value.items() if isinstance(value, Mapping) else value:
                add(part)
        else:
            seen.update(repr(value).encode())

    add(content)
    return seen.hexdigest()


def plain_state(net: Attached) -> dict[str, Tensor]:
    """The state of a network; ValueError where a part of it is no plain tensor."""
    state = net.state_dict()
    for key in (k for k, t in state.items() if not isinstance(t, Tensor) or t.is_quantized):
        raise ValueError(f"{key!r} is no plain tensor: save and load before it is quantised")
    return state


def load(path: str | Path, model: nn.Module, *, likelihood: Likelihood | None = None) -> Attached:
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
    with _understood(path), contextlib.ExitStack() as undo:
        bare = not isinstance(model, Attached)
        net = undo.enter_context(_attach_as(about, model, likelihood)) if bare else model
        check_same(about, describe(net), path)
        load_state(net, content["state"], path)
        undo.pop_all()
    return net


@contextlib.contextmanager
def _understood(path: str | Path) -> Iterator[None]:
    """Say in one line that a file holds something else than it should."""
    try:
        yield
    except (AttributeError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"{str(path)!r} does not hold what this gfo {__version__} writes ({said})"
        raise ValueError(f"{what}: use the version that wrote it, or save again") from None


def read(path: str | Path, *keys: str) -> dict:
    """The content of a gfo file.

    Args:
        path: The file.
        keys: What it has to hold besides what it is of, and the state.

    Raises:
        FileNotFoundError: Where there is no such file.
        ValueError: Where it is damaged, no gfo file or of a later format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: save one first with gfo.save(net, path)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = type(error).__name__
        raise ValueError(f"{str(path)!r} is damaged or no gfo file ({said})") from None
    if not isinstance(content, dict) or "gfo" not in content:
        raise ValueError(f"{str(path)!r} was not written by gfo.save")
    if (written := content.get("format", 0)) not in (0, FORMAT):
        raise ValueError(f"{str(path)!r} has format {written!r}: use a later gfo")
    if written and content.pop("digest", None) != digest(content):
        raise ValueError(f"{str(path)!r} is damaged (wrong digest): take another copy")
    if lost := [key for key in ("state", *keys) if key not in content]:
        raise ValueError(f"{str(path)!r} lacks {lost[0]!r}: cut down, or no checkpoint of gfo.fit")
    with _understood(path):  # the spec as it would be today
        content["gfo"] |= {"spec": _as(list, spec_of(content["gfo"]["spec"]))}
    return content


def check_same(there: dict, here: dict, path: str | Path) -> None:
    """Raise ValueError naming the first entry in which a file and this network differ."""
    for key in sorted(here | there, key=lambda key: key != "likelihood"):  # the rest follows it
        one, other = (side.get(key, "the default") for side in (there, here))
        if key == "spec":  # of which what it takes, not what `attach` found may be shared
            one, other = ([*spec[:4], *spec[6:8]] for spec in (one, other))
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):  # the entries that differ
            names = [n for n in one | other if one.get(n) != other.get(n)]
            one, other = ({n: side.get(n) for n in names} for side in (one, other))
        raise ValueError(f"{str(path)!r} holds another {key}: {one} there, {other} here")


def load_state(net: Attached, state: dict, path: str | Path) -> None:
    """Load weights that have the shapes of this network's; ValueError, before one moves, if not."""
    here, there = ({k: tuple(v.shape) for k, v in s.items()} for s in (plain_state(net), state))
    for key in here | there:  # before a weight moves: torch copies what fits, then complains
        if (one := there.get(key)) != (other := here.get(key)):
            what = f"{key} is {one} there, {other} here"
            raise ValueError(f"{str(path)!r} holds another architecture: {what}")
    with net.exclusive():
        net.load_state_dict(state)


def spec_of(plain: list) -> Spec:
    """The spec in a file; one written before a field was there gets its default."""
    spec = Spec(*_as(tuple, plain))
    sites = tuple(Site(*site) for site in spec.sites)
    return spec._replace(sites=sites, outputs=spec.outputs or (spec.classes,))


def _attach_as(about: dict, model: nn.Module, likelihood: Any) -> Attached:
    spec, modules = spec_of(about["spec"]), dict(model.named_modules())
    for site in (site for site in spec.sites if site.name not in modules):
        raise ValueError(f"the file has a site {site.name!r}, which this model lacks")
    check_bare(model)
    if (name := about["method"]) not in METHODS:
        raise ValueError(f"no method {name!r} here: import the package or module that has it")
    return put_masks(model, spec, METHODS[name](**about["config"]), likelihood)
