"""A chapter opened alone: its first cell finds both packages or brings them, and keeps torch."""

import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import papermill
import pytest

from book.tools import toc
from book.tools.address import CELL
from book.tools.execute import CELL_TIMEOUT

CHAPTER = "start_here"  # a quick one, which trains, and reads records and the paper's tables
IS_THERE = """import gfo, torch
from gfo_lab import records
print(gfo.__file__, records.RESULTS, torch.__file__, sep="\\n")"""


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A repository that holds what the working tree holds, uncommitted changes included."""
    there = tmp_path_factory.mktemp("home") / "repository"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=toc.ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, names.stdout.split("\0")):
        if (toc.ROOT / name).is_file():  # listed and deleted otherwise
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(toc.ROOT / name, there / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", *command], cwd=there, check=True)
    return there


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """An interpreter with all that the book needs but the book: a folder that a .pth file names
    is searched, its own .pth files, which bring editable packages, are not read."""
    there = tmp_path_factory.mktemp("elsewhere")
    venv.create(there, symlinks=os.name != "nt")
    scheme = {"base": str(there), "platbase": str(there)}
    own = Path(sysconfig.get_path("purelib", "venv", scheme))
    (own / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"


@pytest.fixture
def run_alone(elsewhere, tmp_path, monkeypatch):
    """Run cells with that interpreter, in a folder, behind the first cell with an address."""
    kernel = tmp_path / "jupyter/kernels/elsewhere"
    kernel.mkdir(parents=True)
    start = [str(elsewhere), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    def run(cells, home, folder, installed=""):
        # no index: what is there has to do
        env = {"PIP_NO_INDEX": "1", "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        about = {"argv": start, "display_name": "elsewhere", "language": "python", "env": env}
        (kernel / "kernel.json").write_text(json.dumps(about))
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "elsewhere", "display_name": "elsewhere"}
        notebook.metadata["language_info"] = {"name": "python"}
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source = CELL.format(home=home)
        nbformat.write(notebook, tmp_path / "alone.ipynb")
        done = papermill.execute_notebook(
            tmp_path / "alone.ipynb", tmp_path / "out.ipynb", kernel_name="elsewhere",
            cwd=folder, progress_bar=False, execution_timeout=CELL_TIMEOUT,
        )  # fmt: skip
        return done.cells

    return run


def two_cells():
    return [nbformat.v4.new_code_cell(), nbformat.v4.new_code_cell(IS_THERE)]


def printed(cells) -> list[Path]:
    """Where gfo, the records and torch came from."""
    return [Path(line) for line in cells[-1].outputs[-1].text.splitlines()]


@pytest.mark.slow
def test_a_chapter_alone_in_an_empty_folder_brings_the_book(run_alone, clone, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    chapter = nbformat.read(toc.ROOT / f"book/{CHAPTER}.ipynb", as_version=4)
    cells = run_alone([*chapter.cells, two_cells()[1]], str(clone), folder)
    gfo, results, torch = printed(cells)
    assert gfo == folder / "gflowout/gfo/__init__.py"
    assert results == folder / "gflowout/book/results"
    assert torch == Path(sysconfig.get_path("purelib")) / "torch/__init__.py"
    assert [path.name for path in folder.iterdir() if path.name != "data"] == ["gflowout"]
    # The clone is there now: no address is needed any more.
    assert printed(run_alone(two_cells(), "", folder)) == [gfo, results, torch]


@pytest.mark.slow
def test_a_chapter_in_a_clone_takes_that_clone(run_alone, clone):
    gfo, results, _ = printed(run_alone(two_cells(), "nowhere", clone / "book"))
    assert gfo == clone / "gfo/__init__.py" and results == clone / "book/results"
    assert not (clone / "book/gflowout").exists()


@pytest.mark.slow
def test_another_gfo_is_not_taken_for_ours(run_alone, clone, tmp_path):
    (tmp_path / "installed/gfo").mkdir(parents=True)
    (tmp_path / "installed/gfo/__init__.py").write_text("")
    # In a clone's book/ the laboratory is found, so that gfo itself has to be looked at.
    gfo, *_ = printed(run_alone(two_cells(), "", clone / "book", tmp_path / "installed"))
    assert gfo == clone / "gfo/__init__.py"


@pytest.mark.slow
def test_without_an_address_one_line_says_what_to_do(run_alone, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(papermill.PapermillExecutionError) as error:
        run_alone(two_cells(), "", folder)
    assert error.value.ename == "ModuleNotFoundError"
    assert error.value.evalue.startswith("no gfo here: run `pip install -e .` in a clone")
    assert list(folder.iterdir()) == []
