"""Every chapter runs from start to end under its quick profile; its own assertions must hold."""

import papermill
import pytest

from book.tools import toc

PARAMETERS = {"profile": "quick"}


@pytest.mark.chapters
@pytest.mark.parametrize("path", toc.chapters(), ids=lambda path: path.stem)
def test_chapter_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    # Papermill only warns of a parameter that the notebook does not have.
    assert set(PARAMETERS) <= set(papermill.inspect_notebook(path))
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters=PARAMETERS,
        kernel_name="python3",
        cwd=path.parent,
        progress_bar=False,
    )
