"""Writing files so that nobody ever reads half of one; reading settings."""

import contextlib
import os
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`.

    A reader sees the old file or the whole new one, whatever kills the writer, and two writers
    never share a temporary.

    Raises:
        ValueError: Where nothing can be written there, be the disk full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with saying_why(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def saying_why(path: str | Path, what: str = "file") -> Iterator[None]:
    """Turn what writing raises, a full disk for one, into a line that names the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is torch's
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        said = f"{what} {str(path)!r} cannot be written to ({reason})"
        raise ValueError(f"{said}: see if the disk is full, or the folder not yours") from None


def declared(module: str, name: str | None = None) -> dict[str, Any]:
    """The TOML file beside a module: of the module's own name, or `name`."""
    path = Path(module).with_name(name or f"{Path(module).stem}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))
