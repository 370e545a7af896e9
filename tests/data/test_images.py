"""CIFAR, SVHN, their corruptions and what lies outside them. Small stand-ins, where the real files
are not needed; the real CIFAR-10 where GFO_DATA has it."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import gfo
from gfo.core.noise import generator
from gfo.data import cifar_c, corrupt, crop_flip, outside, random_labels, rotate
from gfo.data.corruptions import CORRUPTIONS, FROST, NOISE, streaked, textures, zoomed
from gfo.data.images import cifar_part
from gfo.data.splits import split

ROOT = Path(os.environ.get("GFO_DATA", "data"))
REAL = (ROOT / "cifar-10-batches-py").is_dir()


def pictures(n=64, channels=3):
    """Smooth raw images, bright and dark: noise would hide what snow and frost do."""
    gen = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, channels, 4, 4, generator=gen)
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")


# Data sets


def write_cifar10(root, monkeypatch, images=40):
    """Files in the published layout, and torchvision's list of checksums made to fit them."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    gen = np.random.default_rng(0)

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        data = gen.integers(0, 256, (images, 3072), dtype=np.uint8)
        return put(name, {"data": data, "labels": list(gen.integers(0, 10, images))})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/x")
    return folder


def test_cifar_is_cut_by_sizes_and_keeps_the_order_of_its_test_set(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    splits = gfo.data.load("cifar10", root=tmp_path, sizes=(120, 30, 20))
    parts = (splits.train, splits.valid, splits.tune, splits.test)
    assert [len(y) for _, y in parts] == [120, 30, 20, 40]
    assert all(x.shape[1:] == (3, 32, 32) and x.dtype == torch.float32 for x, _ in parts)
    torch.testing.assert_close(splits.train[0].mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    test = pickle.loads((folder / "test_batch").read_bytes())
    want = torch.from_numpy(test["data"]).unflatten(1, (3, 32, 32)) / 255
    torch.testing.assert_close(splits.raw(splits.test[0]), want, rtol=0, atol=1e-6)
    assert (splits.raw(9 * splits.test[0]) <= 1).all()
    assert splits.test[1].tolist() == [int(label) for label in test["labels"]]
    with pytest.raises(ValueError, match="200 images to divide"):
        gfo.data.load("cifar10", root=tmp_path, sizes=(200, 1, 0))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_missing_files_are_named(name, tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/x")
    monkeypatch.setattr(datasets.CIFAR100, "url", "http://127.0.0.1:9/x")
    gone = {k: ["http://127.0.0.1:9/x", *v[1:]] for k, v in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", gone)
    with pytest.raises(FileNotFoundError, match="set GFO_DATA or root to a folder") as error:
        gfo.data.load(name, root=tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_cifar_file_is_named(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    (folder / "data_batch_3").write_bytes((folder / "data_batch_3").read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="CIFAR10 is not complete"):
        gfo.data.load("cifar10", root=tmp_path)


@pytest.mark.skipif(not REAL, reason="no CIFAR-10 under GFO_DATA")
def test_the_real_cifar10_has_its_published_moments():
    x, y = cifar_part("cifar10", ROOT, train=True)
    means = [float(x[:, channel].float().mean()) / 255 for channel in range(3)]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
    assert len(x) == 50_000 and y.bincount().tolist() == [5000] * 10


def test_digits_take_the_shape_of_cifar():
    grey = gfo.data.load("digits", size=32, channels=3)
    x, y = grey.train
    assert x.shape == (1000, 3, 32, 32) and torch.equal(x[:, 0], x[:, 2])
    assert torch.equal(y, gfo.data.load("digits").train[1])


def test_bytes_become_floats_and_too_large_sizes_are_named():
    x = torch.randint(256, (30, 3, 4, 4), dtype=torch.uint8)
    splits = split("toy", (x, torch.arange(30) % 3), (20, 5, 5), None, 3, 0)
    raw = torch.cat([splits.raw(part[0]) for part in (splits.train, splits.valid, splits.tune)])
    assert sorted((255 * raw).round().flatten().tolist()) == sorted(x.float().flatten().tolist())
    for sizes in ((31, 0, 0), (1, 0, 0), (10, -1, 0)):
        with pytest.raises(ValueError, match="toy has 30 images to divide"):
            split("toy", (x, torch.arange(30) % 3), sizes, None, 3, 0)
    with pytest.raises(ValueError, match="toy has \\(3, 4, 4\\)"):
        splits.normalised(torch.rand(2, 3, 8, 8))


# Changes of images and labels


def test_a_whole_turn_is_none():
    x = pictures()
    assert torch.equal(rotate(x, 0.0), x)
    torch.testing.assert_close(rotate(x, 360.0), x, rtol=0, atol=1e-5)


def test_crops_and_flips_are_those_of_a_loop_and_come_from_the_generator():
    x = torch.rand(50, 3, 8, 10)
    moved = crop_flip(x, generator(0, "a"), pad=2)
    assert moved.shape == x.shape and torch.equal(moved, crop_flip(x, generator(0, "a"), pad=2))
    assert not torch.equal(moved, crop_flip(x, generator(1, "a"), pad=2))
    padded, found = torch.nn.functional.pad(x, [2] * 4), []
    for image, got in zip(padded, moved, strict=True):
        options = {
            (top, left, flip): (cut.flip(2) if flip else cut)
            for top in range(5)
            for left in range(5)
            for cut in [image[:, top : top + 8, left : left + 10]]
            for flip in (0, 1)
        }
        found += [[key for key, option in options.items() if torch.equal(option, got)]]
    assert all(len(keys) == 1 for keys in found)
    for axis, values in enumerate((range(5), range(5), range(2))):
        assert {keys[0][axis] for keys in found} == set(values)  # 50 draws miss none of 5


def test_label_noise_is_fixed_by_the_seed_and_reaches_every_class():
    y = torch.arange(10_000) % 10
    noisy = random_labels(y, 10, 0.3, generator(0, "labels"))
    assert torch.equal(noisy, random_labels(y, 10, 0.3, generator(0, "labels")))
    assert not torch.equal(noisy, random_labels(y, 10, 0.3, generator(1, "labels")))
    # 3,000 drawn, 9 in 10 of them wrong: sd 16
    assert int((noisy != y).sum()) == pytest.approx(2700, abs=5 * 16.5)
    table = torch.zeros(10, 10).index_put_((y, noisy), torch.ones(1), accumulate=True)
    assert (table > 0).all()  # every class in every class's place, 30 expected in each
    assert torch.equal(random_labels(y, 10, 0.0, generator(0, "a")), y)
    with pytest.raises(ValueError, match="share is 1.5"):
        random_labels(y, 10, 1.5, generator(0, "a"))


# Corruptions

# Mean absolute change of `pictures()` by severity under seed 0, as computed once with the CIFAR-C
# constants; a change of one constant by a tenth moves them by more than the tolerance.
CHANGE = {
    "gaussian_noise": (0.03186, 0.04763, 0.06322, 0.07094, 0.07858),
    "snow": (0.04594, 0.10114, 0.10629, 0.17315, 0.22222),
    "frost": (0.10889, 0.16072, 0.16718, 0.14555, 0.13296),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_mean_change_of_each_severity_is_pinned(name):
    x = pictures()
    changed = [corrupt(x, name, severity) for severity in range(1, 6)]
    assert all(c.shape == x.shape and 0 <= c.min() and c.max() <= 1 for c in changed)
    sizes = [float((c - x).abs().mean()) for c in changed]
    assert sizes == pytest.approx(CHANGE[name], rel=0.01)  # other builds round otherwise
    if name != "frost":  # whose constants are not monotone
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_seeded_batched_and_work_on_grey_images(name):
    x = pictures(6)
    assert torch.equal(corrupt(x, name, 3), corrupt(x, name, 3))
    assert not torch.equal(corrupt(x, name, 3), corrupt(x, name, 3, seed=1))
    each = (corrupt(x, name, 3) - x).flatten(1).std(1)
    assert len(set(each.tolist())) == 6  # every image has noise of its own
    grey = pictures(6, channels=1)
    assert corrupt(grey, name, 5).shape == grey.shape


def test_gaussian_noise_has_the_published_standard_deviations():
    x = torch.full((8, 3, 32, 32), 0.5)  # five standard deviations from either end
    for severity, sigma in enumerate(NOISE, 1):
        noise = corrupt(x, "gaussian_noise", severity) - x
        assert float(noise.std()) == pytest.approx(sigma, rel=0.02)  # 24,576 numbers: 3 of 0.5 %


def holds(texture, piece):
    """Whether `piece` (3, 32, 32) is cut from `texture`."""
    first = (texture[:, :-31, :-31] - piece[:, :1, :1]).abs().amax(0) < 1e-6
    cuts = [texture[:, row : row + 32, left : left + 32] for row, left in first.nonzero().tolist()]
    return any(float((cut - piece).abs().max()) < 1e-6 for cut in cuts)


def test_frost_is_the_weighted_sum_of_the_image_and_a_piece_of_a_texture():
    assert len(textures()) == 5
    black = corrupt(torch.zeros(20, 3, 32, 32), "frost", 2)
    for image in black / FROST[1][1]:
        assert any(holds(texture, image) for texture in textures())
    both = corrupt(torch.full((20, 3, 32, 32), 0.25), "frost", 2)
    torch.testing.assert_close(both, (black + FROST[1][0] * 0.25).clamp(0, 1))


def test_a_streak_is_a_normalised_half_gaussian_line():
    layer = torch.zeros(2, 1, 33, 33)
    layer[:, :, 16, 16] = 1.0
    weights = torch.exp(-0.5 * (torch.arange(9) / 3.0) ** 2)
    weights = weights / weights.sum()
    right, down = streaked(layer, 4, 3.0, torch.tensor([180.0, -90.0]))
    torch.testing.assert_close(right[0, 16, 16:25], weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(down[0, 16:25, 16], weights, rtol=0, atol=1e-4)
    flat = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(streaked(flat, 4, 3.0, torch.tensor([-100.0])), flat)


def test_zoom_enlarges_the_middle():
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    torch.testing.assert_close(zoomed(ramp, 1), ramp)
    twice = zoomed(ramp, 2)
    assert float(twice.min()) == pytest.approx(8 / 31) and float(twice.max()) == pytest.approx(
        23 / 31
    )


def test_bad_corruptions_are_named():
    x = pictures(2)
    for call, message in (
        (lambda: corrupt(x, "snow", 0), "severity is 0, needs to be one of 1, 2, 3, 4, 5"),
        (lambda: corrupt(x, "snow", 6), "severity is 6"),
        (lambda: corrupt(x, "sno", 1), "did you mean 'snow'"),
        (lambda: corrupt(x[:, :2], "snow", 1), r"\(2, 2, 32, 32\), need \(n, 1 or 3"),
        (lambda: corrupt(x * 2 - 1, "snow", 1), "corrupt first, then normalise"),
        (lambda: corrupt(torch.zeros(1, 3, 300, 300), "frost", 1), "textures .* no 300 × 300"),
        (lambda: cifar_c("digits", "snow", 1), "no official corrupted digits"),
        (lambda: cifar_c("cifar10", "snow", 9), "severity is 9"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_official_arrays_are_read_by_severity_and_checked(tmp_path, monkeypatch):
    from gfo.data import published as module

    monkeypatch.setattr(module, "IMAGES", 20)
    with pytest.raises(FileNotFoundError, match="use gfo.data.corrupt"):
        cifar_c("cifar10", "snow", 1, root=tmp_path)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    assert module.has_cifar_c("cifar10", tmp_path)
    assert not module.has_cifar_c("cifar100", tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)
    labels = np.tile(np.arange(20) % 10, 5)
    np.save(folder / "snow.npy", images)
    np.save(folder / "labels.npy", labels)
    with pytest.raises(FileNotFoundError, match="MD5 differs") as error:
        cifar_c("cifar10", "snow", 1, root=tmp_path)
    assert "\n" not in str(error.value)
    sums = {
        name: hashlib.md5((folder / f"{name}.npy").read_bytes()).hexdigest()
        for name in ("snow", "labels")
    }
    monkeypatch.setitem(module.MD5, "cifar10", sums)
    x, y = cifar_c("cifar10", "snow", 4, root=tmp_path)
    want = torch.from_numpy(images[60:80]).permute(0, 3, 1, 2) / 255
    assert torch.equal(x, want) and y.tolist() == labels[60:80].tolist()


# Outside


@pytest.mark.parametrize("name", ["noise", "photos"])
def test_outside_images_are_normalised_by_the_training_part(name):
    splits = gfo.data.load("digits", size=32, channels=3)
    x = outside(name, splits, 50)
    assert x.shape == (50, 3, 32, 32) and torch.equal(x, outside(name, splits, 50))
    raw = x * splits.std + splits.mean
    assert -1e-5 < raw.min() and raw.max() < 1 + 1e-5 and raw.std() > 0.1


def test_nothing_is_outside_of_itself():
    splits = gfo.data.load("digits", size=32, channels=3)
    with pytest.raises(ValueError, match="digits is what the network was trained on"):
        outside("digits", splits, 5)
    with pytest.raises(ValueError, match="did you mean 'photos'"):
        outside("photo", splits, 5)
    with pytest.raises(ValueError, match="digits has"):
        outside("noise", gfo.data.load("digits"), 5)
