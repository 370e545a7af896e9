"""Saved files and checkpoints: a digest, a format, one line for what cannot be read or written."""

import ast
import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import toy_model
from torch import nn

import gfo
from gfo.core.files import write_atomically
from gfo.core.registry import METHODS
from gfo.core.save import digest

ROOT = Path(gfo.__file__).parent
X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
RUN = dict(epochs=2, batch=4, progress=False, device="cpu", samples=2)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return gfo.attach(*toy_model(), "gflowout", X)


def tensors(content):
    """Every tensor in nested dicts and lists."""
    if isinstance(content, torch.Tensor):
        return [content]
    parts = content.values() if isinstance(content, dict) else content
    return [t for p in parts if isinstance(p, dict | list | torch.Tensor) for t in tensors(p)]


def flip(path, tensor, found):
    """Flip one bit of a tensor's data in the file; False where its bytes stand there twice."""
    raw, data = bytearray(path.read_bytes()), tensor.numpy().tobytes()
    if raw.count(data) != 1:
        return False
    raw[raw.index(data) + len(data) // 2] ^= 1 << found % 8
    path.write_bytes(raw)
    return True


@pytest.mark.parametrize("kind", ["saved", "checkpoint"])
def test_one_flipped_bit_of_any_tensor_is_found(kind, net, tmp_path):  # faults A12
    path, whole = tmp_path / "net.pt", tmp_path / "whole.pt"
    if kind == "saved":
        gfo.save(net, whole)
    else:
        gfo.fit(net, (X, Y), (X, Y), checkpoint=whole, **RUN)
    flipped = 0
    for number, tensor in enumerate(tensors(torch.load(whole, weights_only=True))):
        path.write_bytes(whole.read_bytes())
        if tensor.numel() < 2 or not flip(path, tensor, number):
            continue
        flipped += 1
        with pytest.raises(ValueError, match="is damaged") as error:
            if kind == "saved":
                gfo.load(path, toy_model()[0])
            else:
                again = gfo.attach(*toy_model(), "gflowout", X)
                gfo.fit(again, (X, Y), (X, Y), checkpoint=path, **RUN)
        assert "\n" not in str(error.value)
    assert flipped > 10


def old(content):
    """As files were before they had a format."""
    return {k: v for k, v in content.items() if k not in ("format", "digest")}


def test_files_without_a_format_still_load(net, tmp_path):  # faults A12
    path = tmp_path / "net.pt"
    gfo.save(net, path)
    content = torch.load(path, weights_only=True)
    assert content["format"] == 1
    assert content.pop("digest") == digest(content)
    torch.save(old(content), path)
    assert torch.equal(gfo.predict(gfo.load(path, toy_model()[0]), X), gfo.predict(net, X))
    gfo.fit(net, (X, Y), checkpoint=tmp_path / "run.pt", **RUN)
    torch.save(old(torch.load(tmp_path / "run.pt", weights_only=True)), tmp_path / "old.pt")
    again = gfo.attach(*toy_model(), "gflowout", X)
    assert len(gfo.fit(again, (X, Y), checkpoint=tmp_path / "old.pt", **RUN)) == 2
    assert torch.equal(gfo.predict(again, X), gfo.predict(net, X))


def without(*keys):
    def change(content):
        *way, last = keys
        for key in way:
            content = content[key]
        del content[last]

    return change


def longer(content):
    content["gfo"]["spec"].append("more")


def wider(content):
    content["gfo"]["spec"][0][0].append("more")


BAD = {
    "later format": (lambda c: c.update(format=2), "has format 2: use a later gfo"),
    "digest cut off": (without("digest"), "is damaged"),
    "no state": (lambda c: (c.update(old(c)), c.pop("state"), c.pop("format")), "lacks 'state'"),
    "no spec": (lambda c: (c.pop("format"), without("gfo", "spec")(c)), "KeyError: 'spec'"),
    "no method": (lambda c: (c.pop("format"), without("gfo", "method")(c)), "KeyError: 'method'"),
    "longer spec": (lambda c: (c.pop("format"), longer(c)), "does not hold what this gfo"),
    "wider site": (lambda c: (c.pop("format"), wider(c)), "does not hold what this gfo"),
    "new argument": (
        lambda c: (c.pop("format"), c["gfo"]["config"].update(new=1)),
        "does not hold what this gfo",
    ),
    "state of numbers": (
        lambda c: (c.pop("format"), c.update(state={"model.0.weight": 1.0})),
        "does not hold what this gfo",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_with_more_or_less_in_it_is_named_in_one_line(name, net, tmp_path):  # faults C
    change, message = BAD[name]
    path, model = tmp_path / "net.pt", toy_model()[0]
    gfo.save(net, path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError) as error:
        gfo.load(path, model)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_checkpoint_that_lacks_a_part_is_named(net, tmp_path):  # faults C
    path = tmp_path / "run.pt"
    gfo.fit(net, (X, Y), checkpoint=path, **RUN)
    for key in ("progress", "optimizers"):
        content = old(torch.load(path, weights_only=True))
        del content[key]
        torch.save(content, tmp_path / "cut.pt")
        again = gfo.attach(*toy_model(), "gflowout", X)
        with pytest.raises(ValueError, match=f"lacks '{key}'"):
            gfo.fit(again, (X, Y), checkpoint=tmp_path / "cut.pt", **RUN)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_network_predicts_and_is_not_saved(tmp_path):  # faults C
    model, sites = toy_model()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    net = gfo.attach(small, sites, "random", X)
    assert gfo.predict(net, X).shape == (8, 3)
    with pytest.raises(ValueError, match="before it is quantised") as error:
        gfo.save(net, tmp_path / "net.pt")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


class FullDisk:
    """An open file on a disk without room."""

    def __init__(self, *args, **how):
        pass

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass


def test_a_full_disk_is_said_in_one_line(net, tmp_path, monkeypatch):  # faults C
    path = tmp_path / "net.pt"
    gfo.save(net, path)
    before = path.read_bytes()
    monkeypatch.setattr("builtins.open", FullDisk)  # torch wraps what its write raises
    for call in (
        lambda: gfo.save(net, path),
        lambda: gfo.fit(net, (X, Y), checkpoint=tmp_path / "run.pt", **RUN),
        lambda: write_atomically(path, lambda temporary: FullDisk().write("text")),
    ):
        with pytest.raises(ValueError, match="the disk is full") as error:
            call()
        assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["file/net.pt", "folder"])
def test_a_place_that_cannot_be_written_to_is_said_in_one_line(place, net, tmp_path):  # faults C
    (tmp_path / "file").touch(), (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"{place}' cannot be written to") as error:
        gfo.save(net, tmp_path / place)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_every_text_file_is_read_and_written_in_utf8():  # faults D
    missing = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
            picture = ast.unparse(node.func) == "Image.open"
            binary = picture or any("b" in str(mode) for mode in modes)
            text = name in ("read_text", "write_text") or (name == "open" and not binary)
            if text and not any(k.arg == "encoding" for k in node.keywords):
                missing.append(f"{path.name}:{node.lineno} {name}")
    assert missing == [], missing


def test_what_was_set_after_attach_is_refused_since_no_file_would_say_it(tmp_path):
    net = gfo.attach(*toy_model(), "random", torch.randn(2, 6))
    gfo.save(net, tmp_path / "net.pt")
    net.method.rescale = True
    with pytest.raises(ValueError, match="rescale was set after attach"):
        gfo.save(net, tmp_path / "net.pt")


def test_a_method_that_this_process_does_not_know_is_named_with_the_cure(tmp_path):
    @METHODS.register("from-a-package")
    class Theirs(gfo.RandomDropout):
        name = "from-a-package"

    gfo.save(gfo.attach(*toy_model(), Theirs(), X), tmp_path / "net.pt")
    del METHODS["from-a-package"]
    said = "no method 'from-a-package' here: import the package or module"
    with pytest.raises(ValueError, match=said) as error:
        gfo.load(tmp_path / "net.pt", toy_model()[0])
    assert "\n" not in str(error.value)


def test_a_checkpoint_does_not_say_of_a_run_what_was_set_after_attach(net, tmp_path):
    net.method.temperature = 1.0  # a file would say 2
    with pytest.raises(ValueError, match="temperature was set after attach"):
        gfo.fit(net, (X, Y), checkpoint=tmp_path / "run.pt", **RUN)
    gfo.fit(net, (X, Y), **RUN)
