"""What a checkpoint holds, when it is written and how a run goes on from it."""

import tempfile
from pathlib import Path
from typing import Any

from gfo.core.attached import Attached
from gfo.core.files import saying_why
from gfo.core.save import check_same, load_state, read, write_content

File = str | Path | None
Moving = dict[str, dict[str, Any]]  # "optimizers" and "schedulers", by group


def name_of(thing: Any) -> str | None:
    """How a checkpoint tells apart what it cannot hold: by name."""
    if isinstance(thing, str | None):
        return thing  # of an object or a partial its kind, of which a repr has the address
    return getattr(getattr(thing, "func", thing), "__qualname__", type(thing).__qualname__)


def check_writable(path: File, what: str = "checkpoint") -> None:
    """Raise ValueError unless a file can be written there, before there is anything to lose."""
    if path is None:
        return
    with saying_why(path, what):
        if Path(path).is_dir():
            raise IsADirectoryError("it is a folder")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(path).parent) as file:
            file.write(bytes(2**16))  # a full disk takes an empty file


def remember(
    net: Attached, moving: Moving, state: dict, row: dict, checkpoint: File, about: dict
) -> None:
    """Add an epoch to the history, keep the best weights, write the checkpoint.

    Args:
        net: The network.
        moving: Optimisers and schedulers by group.
        state: The progress so far, which this changes.
        row: Of the history.
        checkpoint: The file; None writes none.
        about: What has to agree where the run goes on.
    """
    state["history"].append(row)
    nll = row.get("valid_nll")
    if nll is not None:
        state["waited"] += 1
        if all(nll < earlier["valid_nll"] for earlier in state["history"][:-1]):
            state["waited"] = 0
            state["best"] = {k: v.clone() for k, v in net.state_dict().items()}
    if checkpoint is not None:
        states = {k: {name: o.state_dict() for name, o in v.items()} for k, v in moving.items()}
        content = {"gfo": about, "state": net.state_dict(), "progress": state} | states
        write_content(checkpoint, content)


def resume(net: Attached, moving: Moving, checkpoint: File, about: dict) -> dict:
    """The progress in a checkpoint, with the weights and what else moves restored.

    Args:
        net: Gets the weights.
        moving: Optimisers and schedulers by group, which get their states.
        checkpoint: The file; a fresh start where there is none.
        about: What has to agree with the file's.

    Raises:
        ValueError: For the checkpoint of another network or run, and for a damaged one.
    """
    fresh = {"history": [], "waited": 0, "best": None}
    if checkpoint is None or not Path(checkpoint).exists():
        return fresh
    content = read(checkpoint, "progress", *moving)
    check_same(content["gfo"], about, checkpoint)
    try:
        for kind, named in moving.items():
            for name, each in named.items():
                each.load_state_dict(content[kind][name])
        progress = {key: content["progress"][key] for key in fresh}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = f"{str(checkpoint)!r} is damaged ({type(error).__name__})"
        raise ValueError(f"{said}: delete it to start anew") from None
    load_state(net, content["state"], checkpoint)
    return progress
