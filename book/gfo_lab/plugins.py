"""Methods, models, data sets and experiments from outside the clone, and optional packages.

The former file themselves in the registries when their module is imported: one named with
`--import`, or one that an installed package announces under the group `gfo_lab.plugins`.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from types import ModuleType

GROUP = "gfo_lab.plugins"


def optional(package: str, extra: str) -> ModuleType:
    """A package that only some installations have; ValueError that names its extra if not here."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(f"{package} is not installed: pip install -e '.[{extra}]'") from None


def bring(imports: Sequence[str] = ()) -> None:
    """Import the modules named, which may lie in the working directory, and all announced ones.

    Raises:
        ValueError: Where one of them cannot be imported.
    """
    here = os.getcwd()
    if imports and here not in sys.path:
        sys.path.insert(0, here)
    announced = [entry.value for entry in entry_points(group=GROUP)]
    for name in (*imports, *announced):
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module raises that is not ours
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"cannot import {name!r} ({what}): run where it lies") from None
