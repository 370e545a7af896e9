"""`python -m book.tools.address URL`: tell the book where its repository lies.

Writes the address into `_config.yml`, which brings the Colab buttons, and into the first code cell
of every chapter. A chapter opened in Colab comes alone, and `pip install gfo` would bring another
project of that name: so where one of our two packages is missing the cell takes the clone that the
chapter lies in, or makes one, and installs what that needs. A torch that is there stays. The clone
goes onto `sys.path`, since a running kernel does not see what pip installs in editable mode.
"""

import sys
from pathlib import Path

import nbformat
import yaml

from book.tools import toc
from book.tools.execute import put

CELL = """import importlib.util, subprocess, sys, tomllib
from pathlib import Path

# address of this book's repository
home = "{home}"
spec = importlib.util.find_spec("gfo")  # the package index has another gfo
ours = spec and spec.origin and Path(spec.origin).with_name("core").is_dir()
if not (ours and importlib.util.find_spec("gfo_lab")):
    inside = Path("gfo_lab").is_dir()
    clone = Path.cwd().parent if inside else Path("gflowout").absolute()
    if not clone.exists():
        if not home:
            cure = "run `pip install -e .` in a clone of the book"
            raise ModuleNotFoundError(f"no gfo here: {{cure}}")
        subprocess.run(["git", "clone", "-q", home, str(clone)], check=True)
    text = (clone / "pyproject.toml").read_text("utf-8")
    about = tomllib.loads(text)["project"]
    needs = [*about["dependencies"], *about["optional-dependencies"]["vqa"]]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *needs, "ipywidgets"], check=True)
    importlib.invalidate_caches()
    sys.path[:0] = [str(clone), str(clone / "book")]"""


def install_cell(root: Path = toc.ROOT) -> str:
    """The cell, with the address that `_config.yml` names ("" while it names none)."""
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return CELL.format(home=settings["repository"]["url"])


def set_address(url: str, root: Path = toc.ROOT) -> None:
    """Write `url` wherever it belongs."""
    path = root / "_config.yml"
    text = path.read_text(encoding="utf-8")
    old = yaml.safe_load(text)["repository"]["url"]
    text = text.replace(f'  url: "{old}"', f'  url: "{url}"', 1)
    if yaml.safe_load(text)["repository"]["url"] != url:
        raise ValueError(f'{path.name} has no line `  url: "{old}"`, two spaces and two quotes')
    put(path, text)
    for chapter in sorted((root / "book").glob("*.ipynb")):
        notebook = nbformat.read(chapter, as_version=4)
        next(c for c in notebook.cells if c.cell_type == "code").source = install_cell(root)
        put(chapter, nbformat.writes(notebook, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m book.tools.address URL")
    set_address(sys.argv[1])
