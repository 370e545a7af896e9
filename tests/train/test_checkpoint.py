"""Work in parts that goes on where it was stopped; checkpoints that cannot be used."""

import copy
import errno
import json

import pytest
import torch
from conftest import toy_model

import gfo
from gfo.train.checkpoint import one_by_one


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
        with pytest.raises(ValueError, match=r"run\.json' is damaged: delete it"):
            one_by_one(range(4), lambda item: item, file, "splits", False)


X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
HOW = dict(epochs=2, batch=8, progress=False, device="cpu")


def net(method="random"):
    torch.manual_seed(0)
    return gfo.attach(*toy_model(), method, X[:2])


def test_a_place_that_cannot_be_written_is_found_before_the_first_step(tmp_path, monkeypatch):
    """faults C: it was found after epoch 1."""
    (tmp_path / "file").write_text("here")
    monkeypatch.setattr(gfo.RandomDropout, "loss", None)  # a step would be a TypeError
    for place in (tmp_path / "file" / "run.pt", tmp_path):
        with pytest.raises(ValueError, match="checkpoint .* cannot be written") as caught:
            gfo.fit(net(), (X, Y), checkpoint=place, **HOW)
        assert "\n" not in str(caught.value) and str(place) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


FULL = {
    "by the system": OSError(errno.ENOSPC, "No space left on device"),
    "by torch": RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file\nframe #0"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(name, tmp_path, monkeypatch):
    """faults C: 36 to 61 lines of traceback, the word disk nowhere."""
    file, write = tmp_path / "run.pt", torch.save
    gfo.fit(net(), (X, Y), checkpoint=file, **HOW | {"epochs": 1})
    before = file.read_bytes()

    def full(content, path):
        write(content, path)
        raise FULL[name]

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"run\.pt'.*disk") as caught:
        gfo.fit(net(), (X, Y), checkpoint=file, **HOW)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"] and file.read_bytes() == before


def test_a_damaged_checkpoint_is_named_before_a_weight_moves(tmp_path):
    """faults D."""
    file = tmp_path / "run.pt"
    gfo.fit(net("gflowout"), (X, Y), checkpoint=file, **HOW | {"epochs": 1})
    whole, bytes_ = torch.load(file, weights_only=True), file.read_bytes()

    def without(*keys):
        content = copy.deepcopy(whole)
        inside = content
        for key in keys[:-1]:
            inside = inside[key]
        del inside[keys[-1]]
        return content

    cases = [
        bytes_[: len(bytes_) // 2], b"", without("state"), without("progress"),
        without("optimizers"), without("optimizers", "masks"), without("progress", "history"),
        without("optimizers", "masks", "param_groups"), without("progress", "waited"),
    ]  # fmt: skip
    for content in cases:
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content, file)
        fresh = net("gflowout")
        before = copy.deepcopy(fresh.state_dict())
        with pytest.raises(ValueError, match=r"run\.pt'") as caught:
            gfo.fit(fresh, (X, Y), checkpoint=file, **HOW)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(v, before[k]) for k, v in fresh.state_dict().items())
    gfo.save(net("gflowout"), file)
    with pytest.raises(ValueError, match=r"no checkpoint of gfo\.fit"):
        gfo.fit(net("gflowout"), (X, Y), checkpoint=file, **HOW)
