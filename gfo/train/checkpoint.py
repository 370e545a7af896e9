"""What a checkpoint holds, when it is written and how a run goes on from it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from gfo.core.attached import Attached
from gfo.core.files import write_json
from gfo.core.save import check_same, load_state, read, write_atomically


def name_of(thing: Any) -> str | None:
    """How a checkpoint tells apart what it cannot hold: by name."""
    return thing if isinstance(thing, str | None) else getattr(thing, "__qualname__", repr(thing))


def stopped(state: dict, patience: int, valid: Any) -> bool:
    """Whether the validation loss has waited `patience` epochs for a new best."""
    return valid is not None and state["waited"] >= patience


def remember(
    net: Attached,
    moving: dict[str, dict],
    state: dict,
    row: dict,
    checkpoint: str | Path | None,
    about: dict,
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
        best = min((r["valid_nll"] for r in state["history"][:-1]), default=float("inf"))
        state["waited"] = 0 if nll < best else state["waited"] + 1
        if nll < best:
            state["best"] = {k: v.clone() for k, v in net.state_dict().items()}
    if checkpoint is not None:
        content = {"gfo": about, "state": net.state_dict(), "progress": state} | {
            k: {name: o.state_dict() for name, o in v.items()} for k, v in moving.items()
        }
        write_atomically(checkpoint, lambda temporary: torch.save(content, temporary))


def resume(
    net: Attached, moving: dict[str, dict], checkpoint: str | Path | None, about: dict
) -> dict:
    """The progress in a checkpoint, with the weights and what else moves restored.

    Args:
        net: Gets the weights.
        moving: Optimisers and schedulers by group, which get their states.
        checkpoint: The file; a fresh start where there is none.
        about: What has to agree with the file's.

    Raises:
        ValueError: For the checkpoint of another network or run.
    """
    fresh = {"history": [], "waited": 0, "best": None}
    if checkpoint is None or not Path(checkpoint).exists():
        return fresh
    content = read(checkpoint)
    check_same(content["gfo"], about, checkpoint)
    load_state(net, content["state"], checkpoint)
    for kind, named in moving.items():
        for name, each in named.items():
            each.load_state_dict(content[kind][name])
    return content["progress"]


def one_by_one(
    items: Sequence, work: Callable[[Any], Any], file: Path | None, label: str, progress: bool
) -> list:
    """[work(item) for item in items], with a bar.

    Each result (plain JSON) is kept at once in `file`, if there is one, so that a stopped run goes
    on with the item that it stopped in.
    """
    done = json.loads(file.read_text()) if file and file.exists() else []
    left = items[len(done) :]
    for item in tqdm(left, label, len(items), False, initial=len(done), disable=not progress):
        done.append(work(item))
        if file:
            write_json(file, done)
    return done
