"""`python -m book.tools.address URL`: tell the book where its repository lies.

Writes the address into `_config.yml`, which brings the Colab buttons, and into the first code cell
of every chapter, which fetches the package where there is none: a chapter opened in Colab comes
alone. (`pip install gfo` would bring another project of that name.)
"""

import sys
from pathlib import Path

import nbformat
import yaml

from book.tools import toc

CELL = """import importlib.util, subprocess, sys

home = "{home}"  # address of this book's repository
if importlib.util.find_spec("gfo") is None:
    if not home:
        raise ModuleNotFoundError("no gfo here: run `pip install -e .` in a clone of the book")
    subprocess.run(["git", "clone", "-q", home, "gfo-book"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "gfo-book"], check=True)
    sys.path.insert(0, "gfo-book")"""


def install_cell(root: Path = toc.ROOT) -> str:
    """The cell, with the address that `_config.yml` names ("" while it names none)."""
    settings = yaml.safe_load((root / "_config.yml").read_text())
    return CELL.format(home=settings["repository"]["url"])


def set_address(url: str, root: Path = toc.ROOT) -> None:
    """Write `url` wherever it belongs."""
    path = root / "_config.yml"
    old = yaml.safe_load(path.read_text())["repository"]["url"]
    path.write_text(path.read_text().replace(f'  url: "{old}"', f'  url: "{url}"', 1))
    for chapter in sorted((root / "book").glob("*.ipynb")):
        notebook = nbformat.read(chapter, as_version=4)
        next(c for c in notebook.cells if c.cell_type == "code").source = install_cell(root)
        chapter.write_text(nbformat.writes(notebook, indent=1) + "\n")


if __name__ == "__main__":
    set_address(*sys.argv[1:])
