"""Writing files so that nobody ever reads half of one."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`.

    A reader sees the old file or the whole new one, whatever kills the writer, and two writers
    never share a temporary.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any, **how: Any) -> None:
    """Write `content` as JSON, whole or not at all; keywords go to `json.dumps`."""
    text = json.dumps(content, **how) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
