"""The laboratory of the book: experiments, their records, the ledger, the command line."""

import tomllib
from pathlib import Path
from typing import Any


def declared(module: str, name: str | None = None) -> dict[str, Any]:
    """The TOML file beside a module: of the module's own name, or `name`."""
    path = Path(module)
    path = path.with_suffix(".toml") if name is None else path.with_name(name)
    return tomllib.loads(path.read_text(encoding="utf-8"))
