"""Writing files so that nobody ever reads half of one."""

import errno
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: more than the user may write


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and move the result to `path`.

    A reader sees the old file or the whole new one, whatever kills the writer, and two writers
    never share a temporary.

    Raises:
        ValueError: Where the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if not disk_full(error):
            raise
        raise ValueError(f"{str(path)!r} is not written, the disk is full: make room") from None
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a used-up share of it, is behind an error (torch raises its own)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; ValueError, naming the file, where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:  # also of bytes that are no UTF-8
        raise ValueError(f"{str(path)!r} is damaged, it is no JSON: delete it") from None


def write_json(path: str | Path, content: Any, **how: Any) -> None:
    """Write `content` as JSON, whole or not at all; keywords go to `json.dumps`."""
    text = json.dumps(content, **how) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
