"""What the book consists of, read from `_toc.yml`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WRITTEN = {"data_dictionary", "status"}  # pages that the build itself writes, see stage.py


def parts(root: Path = ROOT) -> dict[str, str]:
    """The part of each page, `book/start_here`, …, in reading order; of the front page "Front"."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    inside = {e["file"]: part.get("caption", "") for part in toc["parts"] for e in part["chapters"]}
    return {toc["root"]: "Front", **inside}


def pages(root: Path = ROOT) -> list[str]:
    """The pages in reading order, without suffix."""
    return list(parts(root))


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks among the pages."""
    paths = [root / f"{page}.ipynb" for page in pages(root)]
    return [path for path in paths if path.exists()]


def missing(root: Path = ROOT) -> list[str]:
    """Pages of the table of contents that nobody wrote, nor the build itself writes."""
    written = (f"{page}{kind}" for page in pages(root) for kind in (".ipynb", ".md"))
    there = {Path(name).stem for name in written if (root / name).exists()}
    return [page for page in pages(root) if Path(page).name not in there | WRITTEN]
