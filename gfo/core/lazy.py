"""Names that are imported when first used, so that `import gfo` loads torch and little else."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, names: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """A `__getattr__` for a package (PEP 562): its submodules are imported when first asked for.

    Args:
        package: The package's own name.
        names: Names of functions and classes, each with the module that holds it.

    Returns:
        The function; it raises AttributeError for any other name.
    """
    places = names or {}

    def find(name: str) -> Any:
        if name in places:
            return getattr(importlib.import_module(places[name]), name)
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
