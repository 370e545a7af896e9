"""The README's Python runs as it stands."""

import re

import pytest
import torch

from book.tools import toc

README = toc.ROOT / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_there_are_three_blocks_of_ten_lines():
    assert [len(block.strip().splitlines()) <= 10 for block in BLOCKS] == [True] * 3


@pytest.mark.parametrize("block", BLOCKS[:2], ids=["attach", "train"])
def test_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_five_lines_give_calibrated_probabilities_a_set_and_a_figure():
    torch.manual_seed(0)
    found: dict = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), found)
    start = next(i for i, line in enumerate(BLOCKS[2].splitlines()) if line.startswith("net ="))
    assert len(BLOCKS[2].splitlines()[start:]) == 5
    probs, sets, labels = found["probs"], found["sets"], found["labels"]
    torch.testing.assert_close(probs.sum(1), torch.ones(50))
    assert found["scale"].gain > 0  # an untrained network's guesses are worth flattening
    inside = sets(probs)
    assert inside.shape == (50, 10) and inside.dtype == torch.bool
    low, high = sets.band(50, 0.9999)  # a right one is outside once in 10,000 seeds
    share = inside[torch.arange(50), labels[2]].double().mean()
    assert low <= sets.coverage(probs, labels[2]) == share <= high
    (ax,) = found["figure"].axes
    assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == [
        "as predicted",
        "scaled",
    ]
