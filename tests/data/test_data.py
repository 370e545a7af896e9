"""Data sets, splits and shifts."""

import gzip
import hashlib
import os
import struct
import threading
import time
from pathlib import Path

import pytest
import torch

import gfo
from gfo.data import images, rotate
from gfo.data.splits import check_file, fetch

RAW = Path(os.environ.get("GFO_DATA", "data")) / "MNIST" / "raw"


def test_digits_are_whole_disjoint_and_normalised_by_the_training_part():
    a, b, c = (gfo.data.load("digits", seed=s) for s in (0, 0, 1))
    parts = (a.train, a.valid, a.tune, a.test)
    assert [len(y) for _, y in parts] == [1000, 200, 200, 397]
    assert all(x.shape[1:] == (1, 28, 28) and x.dtype == torch.float32 for x, _ in parts)
    rows = {tuple((x * 1000).round().flatten().tolist()) for part in parts for x in part[0]}
    assert len(rows) > 1790  # 1,797 images, a handful of which may be equal
    assert abs(float(a.train[0].mean())) < 1e-5 and abs(float(a.train[0].std()) - 1) < 1e-4
    assert torch.equal(a.train[0], b.train[0]) and not torch.equal(a.train[1], c.train[1])


def test_shifted_works_on_raw_images():
    d = gfo.data.load("digits")
    x = d.test[0][:5]
    seen = []
    back = d.shifted(x, lambda raw: seen.append(raw) or raw)
    assert seen[0].min() >= 0 and seen[0].max() <= 1
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


def test_rotation_by_right_angles_is_exact():
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(rotate(x, 0.0), x)
    torch.testing.assert_close(rotate(x, 90.0), x.rot90(1, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotate(x, 180.0), x.rot90(2, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotate(x, 360.0), x, rtol=0, atol=1e-4)
    each = rotate(x, torch.tensor([0.0, 90.0, 270.0]))
    assert torch.equal(each[0], x[0])
    torch.testing.assert_close(each[2], x[2].rot90(3, (1, 2)), rtol=0, atol=1e-4)


def test_rotation_turns_by_the_angle_it_says():
    """A dot 8 pixels right of the centre, turned 30° counter-clockwise."""
    x = torch.zeros(1, 1, 33, 33)
    x[0, 0, 16, 24] = 1.0
    turned = rotate(x, 30.0)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    right, up = ((turned * axis).sum() / turned.sum() for axis in (columns - 16, 16 - rows))
    # bilinear interpolation moves a single dot's centre by a fraction of a pixel
    assert right.item() == pytest.approx(8 * 3**0.5 / 2, abs=0.3)
    assert up.item() == pytest.approx(4, abs=0.3)


def test_missing_mnist_is_named(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [])  # no network: nothing to download from
    with pytest.raises(FileNotFoundError, match="set GFO_DATA or root") as error:
        gfo.data.load("mnist", root=tmp_path)
    assert "\n" not in str(error.value)


def test_corrupt_mnist_is_named(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, _ in MNIST.resources:
        (raw / name).write_bytes(gzip.compress(struct.pack(">IIII", 2051, 1, 28, 28)))
    with pytest.raises(FileNotFoundError, match="not complete"):
        gfo.data.load("mnist", root=tmp_path)


def test_two_who_download_the_same_files_take_turns(tmp_path):
    inside, most = [], []

    def read():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    both = [threading.Thread(target=fetch, args=("X", tmp_path, "x", read)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert most == [1, 1] and not list(tmp_path.iterdir())


# --- Files that are not the published ones (faults A13)


def write_mnist(root, images=6):
    """MNIST's four unpacked files, small: the right kind, not the published ones."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = struct.pack(">IIII", 2051, images, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(range(196)) * 4 * images)
        labels = struct.pack(">II", 2049, images) + bytes(range(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return raw


def digests(raw):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.iterdir()}


def test_faults_a13_unpacked_mnist_files_are_checked(tmp_path, monkeypatch):
    raw = write_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte. is not the") as told:
        images._part(tmp_path, True)
    assert "\n" not in str(told.value) and "GFO_UNCHECKED" in str(told.value)
    monkeypatch.setitem(images.DIGESTS, "mnist", digests(raw))
    x, y = images._part(tmp_path, True)
    assert x.shape == (6, 1, 28, 28) and y.tolist() == list(range(6))
    assert float(x[0, 0, 0, 195 % 28]) == pytest.approx((195 % 28) / 255)
    for name, spoil in (
        ("t10k-labels-idx1-ubyte", lambda b: b[:8] + b[9:] + b[8:9]),  # shifted by one
        ("t10k-images-idx3-ubyte", lambda b: b[:16] + bytes(len(b) - 16)),  # blank
    ):
        images._part(tmp_path, False)  # whole, and its digest known by now
        path = raw / name
        whole = path.read_bytes()
        path.write_bytes(spoil(whole))
        with pytest.raises(FileNotFoundError, match=name):
            images._part(tmp_path, False)
        path.write_bytes(whole)


def test_faults_a13_a_leftover_of_an_old_torchvision_never_wins(tmp_path, monkeypatch):
    monkeypatch.setitem(images.DIGESTS, "mnist", digests(write_mnist(tmp_path)))
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3).long()), old / name)
    assert images._part(tmp_path, True)[1].tolist() == list(range(6))


def test_faults_a13_files_of_ones_own_are_read_with_a_warning(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("GFO_UNCHECKED", "1")
    with pytest.warns(UserWarning, match="not the published file"):
        assert len(images._part(tmp_path, True)[1]) == 6


def test_faults_a13_a_file_is_read_once_for_its_digest(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"a")
    digest = hashlib.sha256(b"a").hexdigest()
    check_file(tmp_path / "f", digest, "")
    monkeypatch.setattr("gfo.data.splits.hashlib", None)
    check_file(tmp_path / "f", digest, "")


@pytest.mark.skipif(not RAW.is_dir(), reason="no MNIST under GFO_DATA")
def test_the_real_mnist_is_the_published_one():
    x, y = images._part(RAW.parents[1], False)
    assert x.shape == (10_000, 1, 28, 28) and y[:5].tolist() == [7, 2, 1, 0, 4]
