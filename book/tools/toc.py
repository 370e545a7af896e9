"""What the book consists of, read from `_toc.yml`."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WRITTEN = {"data_dictionary", "status"}  # pages that the build itself writes, see stage.py


def pages(root: Path = ROOT) -> list[str]:
    """The pages in reading order, without suffix: `book/start_here`, …"""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    return [toc["root"], *chapters]


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks among the pages."""
    paths = [root / f"{page}.ipynb" for page in pages(root)]
    return [path for path in paths if path.exists()]


def missing(root: Path = ROOT) -> list[str]:
    """Pages of the table of contents that nobody wrote, nor the build itself writes."""
    written = (f"{page}{kind}" for page in pages(root) for kind in (".ipynb", ".md"))
    there = {Path(name).stem for name in written if (root / name).exists()}
    return [page for page in pages(root) if Path(page).name not in there | WRITTEN]
