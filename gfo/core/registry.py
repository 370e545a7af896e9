"""Names to things: the one place that records, commands, tables and tests look names up in."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any


class Registry(dict):
    """A dict of named factories whose look-up error names the nearest match."""

    def __init__(self, kind: str, entries: Mapping[str, Any] | None = None):
        super().__init__(entries or {})
        self.kind = kind

    def register(self, name: str) -> Callable:
        """Decorator: file the function or class under `name`; ValueError where another has it.

        One that is defined anew, as by a cell that runs again, takes the place of the old one.
        """

        def file(thing):
            there = self.get(name, thing)
            old, new = (getattr(one, "__qualname__", None) for one in (there, thing))
            if there is not thing and (old is None or old != new):
                raise ValueError(f"{self.kind} {name!r} is {there!r}: take another name")
            self[name] = thing
            return thing

        return file

    def __missing__(self, name):
        near = difflib.get_close_matches(str(name), self, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self))}"
        raise ValueError(f"unknown {self.kind} {name!r}; {hint}")


METHODS = Registry("method")
MODELS = Registry("model")
DATASETS = Registry("data set")
