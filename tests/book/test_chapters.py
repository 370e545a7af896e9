"""Every chapter runs from start to end under its quick profile, and then the solutions of its
exercises; its own assertions must hold."""

import re

import nbformat
import papermill
import pytest

from book.tools import toc
from book.tools.execute import CELL_TIMEOUT

PARAMETERS = {"profile": "quick"}
DETAILS = re.compile(r"<details>.*?</details>", re.DOTALL)
# An `Output` widget talks to the client while its cell runs, and nbclient sometimes waits for ever
# (its issue 312): in solutions the function is called as a first look at the page would call it.
INTERACT = """import ipywidgets
def once(function, **sliders):
    function(**{name: slider.value for name, slider in sliders.items()})
ipywidgets.interact = once"""
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def solutions(notebook) -> list[str]:
    """The code in the folded solutions, in order."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return [code for part in DETAILS.findall(text) for code in CODE.findall(part)]


@pytest.mark.chapters
@pytest.mark.parametrize("path", toc.chapters(), ids=lambda path: path.stem)
def test_chapter_and_its_solutions_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    # Papermill only warns of a parameter that the notebook does not have.
    assert set(PARAMETERS) <= set(papermill.inspect_notebook(path))
    notebook = nbformat.read(path, as_version=4)
    added = [INTERACT, *solutions(notebook)]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in added]
    longer = tmp_path / path.name
    nbformat.write(notebook, longer)
    papermill.execute_notebook(
        longer, tmp_path / "out.ipynb", parameters=PARAMETERS, kernel_name="python3",
        cwd=path.parent, progress_bar=False, execution_timeout=CELL_TIMEOUT,
    )  # fmt: skip


def test_every_chapter_with_exercises_has_code_to_run():
    for path in toc.chapters():
        notebook = nbformat.read(path, as_version=4)
        exercises = any("## Exercises" in cell.source for cell in notebook.cells)
        assert exercises == bool(solutions(notebook)), path.stem
