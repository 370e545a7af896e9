"""The README's Python runs as it stands."""

import re

import pytest

from book.tools import toc

README = toc.ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_there_are_two_blocks_of_ten_lines():
    assert [len(block.strip().splitlines()) <= 10 for block in BLOCKS] == [True, True]


@pytest.mark.parametrize("block", BLOCKS, ids=["attach", "train"])
def test_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
