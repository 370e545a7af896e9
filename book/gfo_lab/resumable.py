"""Work in parts that goes on where it was stopped."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gfo_lab.json_files import read_json, write_json


def one_by_one(
    items: Sequence, work: Callable[[Any], Any], file: Path | None, label: str, progress: bool
) -> list:
    """[work(item) for item in items], with a bar.

    Args:
        items: What to work on, in order.
        work: Gives plain JSON for one of them.
        file: Keeps each result at once, so that a stopped run goes on with the item that it stopped
            in; None keeps nothing.
        label: Of the bar.
        progress: Whether to show it.

    Raises:
        ValueError: Where the file is damaged.
    """
    done = read_json(file) if file and file.exists() else []
    if not isinstance(done, list):
        raise ValueError(f"{str(file)!r} is damaged, it is no list: delete it")
    left = items[len(done) :]
    for item in tqdm(left, label, len(items), False, initial=len(done), disable=not progress):
        done.append(work(item))
        if file:
            write_json(file, done)
    return done
