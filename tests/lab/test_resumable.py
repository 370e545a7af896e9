"""Work in parts that goes on where it was stopped."""

import json

import pytest
from gfo_lab.resumable import one_by_one


def test_a_stopped_run_goes_on_with_the_item_it_stopped_in(tmp_path):
    asked = []

    def work(number):
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"auroc": number / 3}

    how = dict(file=tmp_path / "run.json", label="splits", progress=False)
    with pytest.raises(KeyboardInterrupt):
        one_by_one(range(4), work, **how)
    want = [{"auroc": n / 3} for n in range(4)]
    assert json.loads(how["file"].read_text()) == want[:2]  # kept at once
    assert one_by_one(range(4), work, **how) == want
    assert asked == [0, 1, 2, 2, 3]
    asked.clear()
    assert one_by_one(range(1), work, None, "splits", False) == want[:1]  # nothing is kept


def test_a_damaged_list_is_named(tmp_path):
    """faults D: half a JSON list stopped an audit without saying which file."""
    file = tmp_path / "run.json"
    for content in (b'[{"auroc": 0.5', b'{"a": 1}', b"\xff\xfe["):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.json' is damaged, .*: delete it"):
            one_by_one(range(4), lambda item: item, file, "splits", False)
