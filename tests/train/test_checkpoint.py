"""Work in parts that goes on where it was stopped; checkpoints that cannot be used."""

import copy
import errno
import io
import tempfile
from functools import partial

import pytest
import torch
from conftest import toy_model
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import gfo

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
        without("optimizers"), without("optimizers", "adam"), without("progress", "history"),
        without("optimizers", "adam", "param_groups"), without("progress", "waited"),
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


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    """Folds that share a file name would each get the first fold's network."""
    how = HOW | {"checkpoint": tmp_path / "run.pt", "epochs": 1}
    gfo.fit(net(), (X, Y), **how)
    for x, y in ((X.flip(0), Y), (X, 2 - Y), (X[:-1], Y[:-1])):
        with pytest.raises(ValueError, match="another run"):
            gfo.fit(net(), (x, y), **how)
    assert len(gfo.fit(net(), (X.clone(), Y.clone()), **how | {"epochs": 2})) == 2


def scaled(x, gen, by=1.0):
    return x * by


def test_a_checkpoint_names_a_partial_by_its_function(tmp_path):
    """Its repr has an address: another process could not go on."""
    how = HOW | {"checkpoint": tmp_path / "run.pt"}
    gfo.fit(net(), (X, Y), augment=partial(scaled, by=0.5), **how | {"epochs": 1})
    assert "0x" not in str(torch.load(tmp_path / "run.pt", weights_only=True)["gfo"])
    assert len(gfo.fit(net(), (X, Y), augment=partial(scaled, by=0.5), **how)) == 2
    with pytest.raises(ValueError, match="another run"):
        gfo.fit(net(), (X, Y), augment=lambda x, gen: x, **how)


def test_a_disk_that_takes_but_an_empty_file_is_found_before_the_first_step(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    monkeypatch.setattr(gfo.RandomDropout, "loss", None)
    with pytest.raises(ValueError, match="No space left"):
        gfo.fit(net(), (X, Y), checkpoint=tmp_path / "run.pt", **HOW)


def test_a_sampler_with_a_generator_of_its_own_goes_on_as_an_unbroken_run(tmp_path):
    def loader():
        gen = torch.Generator().manual_seed(5)
        sampler = WeightedRandomSampler(torch.ones(len(X)), len(X), generator=gen)
        return DataLoader(TensorDataset(X, Y), 8, sampler=sampler)

    how = HOW | {"checkpoint": tmp_path / "run.pt"}
    whole, broken = net(), net()
    gfo.fit(whole, loader(), **HOW)
    gfo.fit(broken, loader(), **how | {"epochs": 1})
    gfo.fit(broken, loader(), **how)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name
