"""Lay out in one folder what Jupyter Book builds from.

The notebooks in the repository are plain: Markdown, LaTeX and metadata. What Jupyter Book needs
beyond that (its own metadata keys, links, the status page) is put in here, into copies.
"""

import re
import shutil
from pathlib import Path

import nbformat
import yaml

from book.tools import toc

CITATION = re.compile(r"\[([^\]]+)\]\(bibliography\.md#([\w-]+)\)")
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# Cells that only matter to who runs the notebook; their code is folded away on the page.
FOLDED_TAGS = {"parameters", "install"}


def stage(root: Path, kept: Path, records: list[dict], target: Path) -> None:
    """Fill `target` with configuration, pages, executed notebooks and assets."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "book").mkdir(parents=True)
    shutil.copy(root / "_toc.yml", target)
    (target / "_config.yml").write_text(config((root / "_config.yml").read_text()))
    shutil.copytree(root / "book/assets", target / "book/assets")
    shutil.copy(root / "book/references.bib", target / "book")
    (target / "book/status.md").write_text(status_page(records))
    for page in toc.pages(root):
        stem = Path(page).name
        if (root / f"{page}.ipynb").exists():
            notebook = nbformat.read(kept / f"{stem}.ipynb", as_version=4)
            nbformat.write(dress(notebook, stem), target / f"{page}.ipynb")
        elif stem != "status":
            text = (root / f"{page}.md").read_text()
            (target / f"{page}.md").write_text(link_citations(text))


def config(text: str) -> str:
    """`_config.yml`, with Colab buttons if it has the repository's address."""
    settings = yaml.safe_load(text)
    if settings["repository"]["url"]:
        settings["launch_buttons"] = {"colab_url": "https://colab.research.google.com"}
        settings.setdefault("html", {})["use_repository_button"] = True
    return yaml.safe_dump(settings, sort_keys=False)


def dress(notebook, stem: str):
    """Translate a notebook's plain metadata and links into what MyST-NB reads."""
    figures = 0
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = link_citations(cell.source)
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if not is_progress_bar(out, widgets)]
        tags = cell.metadata.get("tags", [])
        if FOLDED_TAGS & set(tags) and "hide-input" not in tags:
            cell.metadata["tags"] = [*tags, "hide-input"]
        if figure := cell.metadata.get("figure"):
            figures += 1
            cell.metadata["mystnb"] = {
                "figure": {"caption": figure["caption"], "name": f"fig-{stem}-{figures}"},
                "image": {"alt": figure["alt"]},
            }
    return notebook


def is_progress_bar(output, widgets: dict) -> bool:
    """Whether an output is the bar of a loop that is over, which says nothing on a page."""
    view = output.get("data", {}).get(WIDGET_VIEW)
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
