"""Names that are imported when first used, so that `import gfo` loads torch and little else."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazily(
    package: str, modules: Sequence[str] = (), names: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A `__getattr__` for a package (PEP 562).

    Args:
        package: The package's own name.
        modules: Submodules of it that are imported when first asked for.
        names: Names of functions and classes, each with the module that holds it.

    Returns:
        The function; it raises AttributeError for any other name.
    """
    places = dict(names or {})

    def find(name: str) -> Any:
        if name in places:
            return getattr(importlib.import_module(places[name]), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
