"""Lay out in one folder what Jupyter Book builds from.

The notebooks in the repository are plain: Markdown, LaTeX and metadata. What Jupyter Book needs
beyond that (its own metadata keys, links, tables to download, the pages that nobody writes by hand)
is put in here, into copies.
"""

import csv
import re
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path

import nbformat
import yaml

from book.tools import downloads, fold, toc
from book.tools.digits import sensible

CITATION = re.compile(r"\[([^\]]+)\]\(bibliography\.md#([\w-]+)\)")
PICTURE = re.compile(r"^!\[([^\]]+)\]\((assets/[\w-]+\.svg)\)$", re.MULTILINE)
# What the text of a figure says of light and dark holds for the figure as it was drawn.
LIGHTNESS = re.compile(r"\b(?:white|black|dark\w*|bright\w*|pale\w*|heat maps?)\b", re.IGNORECASE)
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def stage(root: Path, kept: Path, records: list[dict], target: Path) -> None:
    """Fill `target` with configuration, pages, executed notebooks and assets."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "book").mkdir(parents=True)
    shutil.copy(root / "_toc.yml", target)
    settings = (root / "_config.yml").read_text(encoding="utf-8")
    (target / "_config.yml").write_text(config(settings), encoding="utf-8")
    shutil.copytree(root / "book/assets", target / "book/assets")
    shutil.copy(root / "book/references.bib", target / "book")
    shutil.copy(root / "book/llms.txt", target)
    written: dict[str, Callable[[], str]] = {
        "data_dictionary": lambda: dictionary_page(root / "book/gfo_lab/dictionary.csv"),
        "status": lambda: status_page(records),
    }
    figures = 0  # so far: they are numbered through the book
    for page in toc.pages(root):
        stem = Path(page).name
        if (root / f"{page}.ipynb").exists():
            notebook = dress(nbformat.read(kept / f"{stem}.ipynb", as_version=4), stem, figures)
            figures += sum(fold.drawn(cell) for cell in notebook.cells if "outputs" in cell)
            downloads.offer(notebook, root / "book/results", target / "book")
            nbformat.write(notebook, target / f"{page}.ipynb")
        elif stem in written:
            (target / f"{page}.md").write_text(written[stem](), encoding="utf-8")
        else:
            text = (root / f"{page}.md").read_text(encoding="utf-8")
            (target / f"{page}.md").write_text(link_citations(text), encoding="utf-8")


def config(text: str) -> str:
    """`_config.yml`, with Colab buttons if it has the repository's address."""
    settings = yaml.safe_load(text)
    if settings["repository"]["url"]:
        settings["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
        settings.setdefault("html", {})["use_repository_button"] = True
    return yaml.safe_dump(settings, sort_keys=False)


def dress(notebook, stem: str, before: int = 0):
    """Translate a notebook's plain metadata and links into what MyST-NB reads.

    Args:
        notebook: an executed chapter.
        stem: its name.
        before: how many figures the pages before it have.
    """
    figures, numbered = 0, before
    fold.settle(notebook)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for place, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = put_pictures(link_citations(cell.source))
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if not is_progress_bar(out, widgets)]
        for output in cell.outputs:
            if "<table" in (html := output.get("data", {}).get("text/html", "")):
                output.data["text/html"] = sensible(html)
        numbered += fold.drawn(cell)
        if figure := cell.metadata.get("figure"):
            figures += 1
            image = {"alt": figure["alt"]} | ({"classes": "as-drawn"} if is_picture(cell) else {})
            cell.metadata["mystnb"] = {
                "figure": {"caption": figure["caption"], "name": f"fig-{stem}-{figures}"},
                "image": image,
            }
        number = numbered + (not fold.drawn(cell))  # of its own figure, or of the next
        fold.fold(cell, number if fold.leads_to_figure(notebook.cells[place:]) else None)
    left = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if not any(fold.WIDGET_VIEW in output.get("data", {}) for output in left):
        notebook.metadata.pop("widgets", None)  # or the page would load 3.7 MB of their scripts
    return notebook


def is_picture(cell) -> bool:
    """Whether light and dark mean something in a figure, which the dark theme may not swap."""
    said = " ".join(cell.metadata["figure"].values())
    return "imshow(" in cell.source or bool(LIGHTNESS.search(said))


def is_progress_bar(output, widgets: dict) -> bool:
    """Whether an output is the bar of a loop that is over, which says nothing on a page."""
    view = output.get("data", {}).get(fold.WIDGET_VIEW)
    if view is None:
        return False
    model = widgets.get(view["model_id"])
    if model is None:  # a bar that closed itself
        return True
    children = [child.removeprefix("IPY_MODEL_") for child in model["state"].get("children") or []]
    return any(widgets[child]["model_name"] == "FloatProgressModel" for child in children)


def link_citations(markdown: str) -> str:
    """`[Liu et al. (2023)](bibliography.md#liu2023)`: a link to that entry of the built page.

    On GitHub and in Jupyter the same link opens the page; MyST knows headings only.
    """
    return CITATION.sub(r'<a class="reference" href="bibliography.html#\2">\1</a>', markdown)


def put_pictures(markdown: str, book: Path = toc.ROOT / "book") -> str:
    """`![text](assets/name.svg)`: the picture itself, described by that text.

    As a part of the page it takes the page's colours, and whoever is disturbed by its motion can
    stop it. On GitHub and in Jupyter the same line shows the file.
    """

    def put(found: re.Match) -> str:
        drawn = (book / found[2]).read_text(encoding="utf-8").strip()
        drawn = drawn.replace("<svg ", f'<svg aria-label="{escape(found[1])}" ', 1)
        still = '<label><input type="checkbox"> hold it still</label>'
        return f'<div class="gm-box">\n{drawn}\n{still}\n</div>'

    return PICTURE.sub(put, markdown)


def status_page(records: list[dict]) -> str:
    """The page that says when each chapter ran, how long, and on what."""
    rows = [
        f"| []({r['chapter']}.ipynb) | {r['started'][:16].replace('T', ' ')} "
        f"| {r['seconds']:.0f} | {r['device']} ({r['cpus']} CPUs) | {r['torch']} | {r['python']} |"
        for r in records
    ]
    total = sum(r["seconds"] for r in records)
    return "\n".join(
        [
            "# Status of the pages",
            "",
            "Every chapter was executed from its notebook, under its quick profile, two at a time "
            "with one thread each, when this book was built or when something the chapter depends "
            "on (its notebook, the package, the records, the pinned versions) last changed.",
            "",
            "| Chapter | Started (UTC) | Seconds | Machine | torch | Python |",
            "|---|---|---:|---|---|---|",
            *rows,
            "",
            f"All chapters together: {total:.0f} s of execution. Figures from longer runs come from"
            " records, and each record names its own machine, date and code version.",
            "",
        ]
    )


def dictionary_page(source: Path) -> str:
    """The page that says what every column of the tables of records means."""
    with source.open(newline="", encoding="utf-8") as lines:
        rows = [{k: v.replace("|", r"\|") for k, v in row.items()} for row in csv.DictReader(lines)]
    configured = [row for row in rows if row["pattern"].startswith("config.")]
    first = rows.index(configured[0]) if configured else len(rows)
    described = rows[first:]
    parts = {
        "What was run, when and where": rows[:first],
        "Configurations": configured,
        "Metrics": [row for row in described if row not in configured],
    }
    text = DICTIONARY
    for title, part in parts.items():
        lines = [f"| `{r['pattern']}` | {r['unit']} | {r['meaning']} |" for r in part]
        head = [f"## {title}", "", "| Column | Unit | Meaning |", "|---|---|---|"]
        text += "\n".join([*head, *lines, "", ""])
    return text


DICTIONARY = """# Data dictionary

Every column that the tables of records have, with its unit and meaning. `gfo-lab table
EXPERIMENT --csv FILE` writes such a table, `gfo_lab.records.table()` returns it: one row per
record, with its identity, what it ran on, its configuration (columns `config.…`) and every metric
that is one number or word; a list in a configuration is JSON. Metrics that are lists
are in `gfo_lab.records.long()`, one row per number. Chapters that show records offer both as CSV at
their end.

A `*` stands for anything; where two patterns fit, the more specific one holds, which is what
`gfo_lab.records.meaning(column)` looks up. Where a column belongs to some experiments only, its
meaning names them. A share is a number from 0 to 1.

"""
