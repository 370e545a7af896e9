"""The tables behind a chapter's figures, as CSV files to download from its page."""

import ast
from pathlib import Path

from nbformat.v4 import new_markdown_cell

# Readers of `gfo_lab.records` and its kin: they take the experiment's name first.
READERS = {"read", "by_row", "table", "long", "with_configs"}
# Functions of the laboratory that read the records of one experiment or more, by module and name.
WRAPPED = {
    ("icu", "recorded"): ["icu"],
    ("icu_tune", "chosen"): ["icu-tune"],
    ("search", "chosen"): ["tune"],
}
# `halves.read` also gives cells that another of its experiments ran.
SHARED = dict.fromkeys(("passes", "policy", "em", "drift"), ["ladder"])


def experiments_read(sources: list[str], known: list[str]) -> list[str]:
    """Names of the experiments, among those `known` to have records, whose records a chapter reads.

    Told from its code: an experiment's name as first argument of a reader of `gfo_lab`, or of a
    function of the chapter's own that calls a reader; the functions of `WRAPPED`; a ledger's table.
    A chapter that walks through the folder of records reads them all.
    """
    code = ast.Module([node for source in sources for node in statements(source)], [])
    imported = names_imported(code)
    own = {
        f.name for f in ast.walk(code) if isinstance(f, ast.FunctionDef)
        if any(last_name(c) in READERS for c in calls(f))
    }  # fmt: skip
    found: set[str] = set()
    for call in calls(code):
        module, name = origin(call, imported)
        first = next((a.value for a in call.args[:1] if isinstance(a, ast.Constant)), None)
        if name in READERS | own and first in known:
            found.add(first)
        if (module, name) == ("ledger", "entries"):
            found |= set(behind_table(first, known))
        if (module, name) == ("records", "experiments") or "RESULTS.iterdir" in ast.unparse(call):
            return known
        found |= set(WRAPPED.get((module, name), ()))
        found |= set(SHARED.get(first, ()) if (module, name) == ("halves", "read") else ())
    return [name for name in known if name in found]


def statements(source: str) -> list[ast.stmt]:
    """A cell's statements; none where it is no Python but a magic's argument."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def calls(code: ast.AST) -> list[ast.Call]:
    """All calls in a piece of code."""
    return [node for node in ast.walk(code) if isinstance(node, ast.Call)]


def last_name(call: ast.Call) -> str:
    """`read` of `records.read(…)`."""
    return ast.unparse(call.func).rpartition(".")[2]


def names_imported(code: ast.AST) -> dict[str, tuple[str, str]]:
    """What `from package.module import name` brings: name here to (module, name there)."""
    return {
        alias.asname or alias.name: ((node.module or "").rpartition(".")[2], alias.name)
        for node in ast.walk(code) if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip


def origin(call: ast.Call, imported: dict[str, tuple[str, str]]) -> tuple[str, str]:
    """The last names of the module that a called function comes from and of the function itself,
    as far as code tells."""
    base, _, name = ast.unparse(call.func).rpartition(".")
    if not base:
        return imported.get(name, ("", name))
    module = base.rpartition(".")[2]
    return imported.get(module, ("", module))[1], name


def behind_table(table: str | None, known: list[str]) -> list[str]:
    """The experiments behind one table of the ledger, or behind all where code does not say."""
    from gfo_lab.ledger import TABLES  # here, since it takes seconds

    tables = [TABLES[table]] if table in TABLES else TABLES.values()
    names = {about.get("experiment") for t in tables for about in t.experiments.values()}
    return [name for name in known if name in names]


def offer(notebook, results: Path, target: Path) -> list[str]:
    """Write the tables of the experiments that a chapter reads into `target`/tables and append a
    cell that links them; returns their names."""
    known = sorted({path.parent.name for path in results.glob("*/*.json")})
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    found = experiments_read(sources, known) if known else []
    links = [link for name in found for link in write_tables(name, results, target / "tables")]
    if links:
        text = "Records on this page as CSV: " + ", ".join(links)
        text += ". What their columns mean: [data dictionary](data_dictionary.md)."
        notebook.cells.append(new_markdown_cell("---\n\n" + text, id="records-as-csv"))
    return found


def write_tables(experiment: str, results: Path, folder: Path) -> list[str]:
    """The files of one experiment, where they are not there yet; returns links to them."""
    from gfo_lab import records  # here, since it takes seconds and some books have no records

    folder.mkdir(exist_ok=True)
    links = []
    for tail, make in (("", records.table), ("-long", records.long)):
        path = folder / f"{experiment}{tail}.csv"
        if not path.exists():
            make(experiment, results).to_csv(path, index=False)
        if path.read_text(encoding="utf-8").count("\n") > 1:  # some have no metric that is a list
            links.append(f"[{path.name}](tables/{path.name})")
    return links
