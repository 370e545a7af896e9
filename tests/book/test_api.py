"""The API page: every public name of the rooms is on it, and its examples run. And llms.txt."""

import ast
import importlib
import inspect
import io
import pkgutil
import re
import tomllib

import nbformat
import pytest
import torch
import yaml

from book.tools import toc
from book.tools.rooms import ROOMS

GFO = ROOMS[:7]
TEXT = (toc.ROOT / "book/api.md").read_text(encoding="utf-8")
INNER = tomllib.loads((toc.ROOT / "book/tools/inner.toml").read_text(encoding="utf-8"))
# "## gfo.core: …" and what stands below it
SECTIONS = {
    head.split(":")[0]: body
    for head, _, body in (part.partition("\n") for part in TEXT.split("\n## ")[1:])
}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", body, re.S) for name, body in SECTIONS.items()}
LLMS = (toc.ROOT / "book/llms.txt").read_text(encoding="utf-8")


def module_names(room: str) -> list[str]:
    """The modules of a room, itself first."""
    package = importlib.import_module(f"gfo.{room}")
    files = pkgutil.iter_modules(package.__path__)
    return [package.__name__, *(f"gfo.{room}.{file.name}" for file in files)]


def defined(module: str) -> set[tuple[str, str]]:
    """(module, name) of the functions and classes without underscore that a module defines."""
    return {
        (module, name)
        for name, thing in vars(importlib.import_module(module)).items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module
        and thing.__name__ == name
        and not name.startswith("_")
    }


def inner() -> set[tuple[str, str]]:
    """What inner.toml leaves out, name by name."""
    whole = [defined(module) for module in INNER["modules"]]
    return set().union(*whole) | {
        (module, name) for module, entry in INNER["names"].items() for name in entry["inner"]
    }


def home(dotted: str) -> tuple[str, str] | None:
    """Where the function or class of that name is defined."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            thing = getattr(thing, part, None)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            return thing.__module__, thing.__qualname__
        return None
    return None


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What autodoc puts on the page, as (module, name), and what Sphinx warns of."""
    from sphinx.application import Sphinx

    folder = tmp_path_factory.mktemp("api")
    told = io.StringIO()
    (folder / "index.md").write_text(TEXT, encoding="utf-8")
    about = yaml.safe_load((toc.ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]
    own = {k: v for k, v in about["config"].items() if k.startswith(("autodoc", "napoleon"))}
    own |= {"extensions": ["myst_parser", *about["extra_extensions"]]}
    app = Sphinx(folder, None, folder / "out", folder / "trees", "dummy", own, None, told)
    app.build()
    objects = app.env.get_domain("py").objects
    kinds = {"function", "class", "exception"}
    names = {home(name) for name, entry in objects.items() if entry.objtype in kinds}
    return names, told.getvalue()


@pytest.fixture(scope="module")
def shown(built):
    """The names on the page."""
    return built[0]


@pytest.mark.slow
def test_docstrings_read_without_a_warning(built):
    """`make book` stops at one. Links to other pages lead nowhere here, where there is one page."""
    lines = [line for line in built[1].splitlines() if "xref_missing" not in line]
    assert lines == []


@pytest.mark.slow
@pytest.mark.parametrize("room", GFO)
def test_every_public_name_of_a_room_is_on_the_page(room, shown):
    public = set().union(*(defined(module) for module in module_names(room))) - inner()
    assert sorted(public - shown) == [], "name it in book/api.md, or say why not in inner.toml"


@pytest.mark.slow
def test_what_is_left_out_is_there_and_not_shown(shown):
    there = set().union(*(defined(module) for room in GFO for module in module_names(room)))
    assert sorted(inner() - there) == [], "inner.toml names what is gone"
    assert sorted(inner() & shown) == [], "inner.toml leaves out what the page shows"
    reasons = [*INNER["modules"].values(), *(entry["why"] for entry in INNER["names"].values())]
    assert all(reasons)


def imported(code: str) -> set[str]:
    """Dotted names of gfo that a piece of Python imports or spells out."""
    tree, found = ast.parse(code), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gfo":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("gfo."):
            found.add(ast.unparse(node))
    return {name for name in found if re.fullmatch(r"[\w.]+", name)}


def codes() -> list[str]:
    """The Python of the chapters, the README and the API page."""
    chapters = [nbformat.read(path, as_version=4) for path in toc.chapters()]
    cells = [cell.source for nb in chapters for cell in nb.cells if cell.cell_type == "code"]
    cells = [re.sub(r"^[%!].*", "", cell, flags=re.M) for cell in cells]  # IPython's commands
    readme = (toc.ROOT / "README.md").read_text(encoding="utf-8")
    return [*cells, *re.findall(r"```python\n(.*?)```", readme + TEXT, re.S)]


@pytest.mark.slow
def test_what_a_reader_meets_or_a_room_exports_is_on_the_page(shown):
    packages = [importlib.import_module(name) for name in ("gfo", *(f"gfo.{r}" for r in GFO))]
    exported = {f"{p.__name__}.{name}" for p in packages for name in getattr(p, "__all__", [])}
    met = {home(name) for name in exported.union(*map(imported, codes()))}
    met = {found for found in met if found and found[0].startswith("gfo.") and "." not in found[1]}
    assert ("gfo.core.attach", "attach") in met
    assert sorted(met - shown) == []


def test_every_room_has_an_example():
    assert [room for room in GFO if not EXAMPLES[f"gfo.{room}"]] == []
    assert EXAMPLES["gfo"]


@pytest.mark.parametrize("room", ["gfo", *(f"gfo.{room}" for room in GFO)])
def test_the_examples_of_a_room_run(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for code in EXAMPLES[room]:
        lines = code.splitlines()
        assert len(lines) <= 10 and max(map(len, lines)) <= 79
        assert "assert" in code
        exec(compile(code, f"book/api.md, {room}", "exec"), {})


def test_llms_txt_names_every_page_in_the_order_of_the_book():
    links = re.findall(r"^- \[[^\]]+\]\((book/\w+)\.html\): \w.*\.$", LLMS, re.M)
    assert links == toc.pages()


def test_llms_txt_has_the_form_and_every_room():
    """As llmstxt.org has it: a title, a quoted summary, sections of annotated links."""
    lines = LLMS.splitlines()
    assert lines[0].startswith("# ") and lines[2].startswith("> ")
    contents = yaml.safe_load((toc.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    heads = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert heads == ["Start", *(p["caption"] for p in contents["parts"]), "The package"]
    rooms = re.findall(r"^- \[gfo\.(\w+)\]\(book/api\.html#([\w-]+)\): ", LLMS, re.M)
    assert tuple(room for room, _ in rooms) == GFO
    heads = [line.removeprefix("## ") for line in TEXT.splitlines() if line.startswith("## ")]
    places = {re.sub(r"[^a-z0-9]+", "-", head.lower()).strip("-") for head in heads}
    assert {place for _, place in rooms} <= places
