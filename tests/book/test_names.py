"""Names that pages, docstrings and the files for contributors put in backticks are there."""

import importlib
import re

import nbformat
import pytest

from book.tools import toc

ROOT = toc.ROOT
NAME = re.compile(r"`(gfo(?:_lab)?(?:\.[A-Za-z_]\w*)+)")
PATH = re.compile(r"`((?:gfo|book|tests|\.ci|\.github)/[\w./-]+)`")
# What a build, a run or a user makes.
MADE = {"book/status.md", "book/data"}
SOURCES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "book").glob("*.md")),
    *sorted((ROOT / "book").glob("*.ipynb")),
    *sorted((ROOT / "gfo").rglob("*.py")),
    *sorted((ROOT / "book/gfo_lab").rglob("*.py")),
    *sorted((ROOT / "book/gfo_lab").rglob("*.csv")),
]


def text_of(path) -> str:
    """A file's words; of a notebook those of all cells, of the changelog what is new in a row."""
    if path.suffix == ".ipynb":
        return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        rows = [line.split(" | ", 1) for line in text.splitlines()]
        return "\n".join(row[-1] for row in rows)
    return text


def resolve(dotted: str):
    """The thing of that name; LookupError where there is none."""
    first, *rest = dotted.split(".")
    thing, path = importlib.import_module(first), first
    for name in rest:
        path += f".{name}"
        if hasattr(thing, name):
            thing = getattr(thing, name)
        elif name in getattr(thing, "__annotations__", {}):
            return None  # a field without a default
        else:
            try:
                thing = importlib.import_module(path)
            except ImportError:
                raise LookupError(dotted) from None
    return thing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_backticks_are_there(path):
    text, lost = text_of(path), []
    for dotted in sorted(set(NAME.findall(text))):
        try:
            resolve(dotted)
        except LookupError:
            lost.append(dotted)
    for name in sorted(set(PATH.findall(text)) - MADE):
        if not (ROOT / name).exists():
            lost.append(name)
    assert lost == []


@pytest.mark.parametrize("dotted", ["gfo.nothing", "gfo.GFlowOut.nothing", "gfo_lab.records.none"])
def test_a_name_that_is_not_there_is_found(dotted):
    with pytest.raises(LookupError):
        resolve(dotted)


@pytest.mark.parametrize("dotted", ["gfo.attach", "gfo.GFlowOut.loss", "gfo.data.Splits.classes"])
def test_a_name_that_is_there_is_found(dotted):
    resolve(dotted)
