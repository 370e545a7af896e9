"""JSON files: what records and the notes of a sweep are kept in."""

import json
from pathlib import Path
from typing import Any

from gfo.core.files import write_atomically


def read_json(path: str | Path, cure: str = "delete it") -> Any:
    """The content of a JSON file; ValueError, naming the file and the `cure`, where it is
    damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # also of bytes that are no UTF-8
        raise ValueError(f"{str(path)!r} is damaged, it is no JSON: {cure}") from None


def write_json(path: str | Path, content: Any, **how: Any) -> None:
    """Write `content` as JSON, whole or not at all; keywords go to `json.dumps`."""
    text = json.dumps(content, **how) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
