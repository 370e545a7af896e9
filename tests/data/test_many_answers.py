"""Halves of images: bits, shapes, and which image is in which part."""

import pytest
import torch
from sklearn.datasets import load_digits

import gfo
from gfo.data import images

PARTS = ("train", "valid", "tune", "test")


@pytest.fixture
def mnist(monkeypatch):
    """Stand-ins for MNIST's files in which all 256 levels occur, no image twice."""
    gen = torch.Generator().manual_seed(0)
    made = {n: torch.randint(256, (n, 1, 28, 28), generator=gen) for n in (60, 20)}

    def part(root, train):
        x = made[60 if train else 20]
        return x.float() / 255, torch.arange(len(x)) % 10

    monkeypatch.setattr(images, "_part", part)
    return made


def glued(part):
    """The images of a part again, flattened, each as a tuple."""
    return [tuple(row) for row in torch.cat(part, 1).tolist()]


def test_digits_glued_together_are_the_images_at_half_their_maximum():
    halves, whole = (gfo.data.load(name, seed=3) for name in ("digits-halves", "digits"))
    assert [len(getattr(halves, name)[1]) for name in PARTS] == [1000, 200, 200, 397]
    assert (halves.name, halves.classes) == ("digits-halves", 32)
    grey = torch.tensor(load_digits().images)
    assert (grey == 8).any()  # on the threshold: 1
    (upper, lower), bits = (
        halves.train,
        torch.stack([t for n in PARTS for t in getattr(halves, n)[0]]),
    )
    assert upper.shape == lower.shape == (1000, 32) and upper.dtype == lower.dtype == torch.float32
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(halves.raw(upper), upper)
    assert torch.equal(halves.shifted(9 * upper, lambda raw: raw - 2), 9 * upper - 2)  # no images
    # the same images in the same order as in "digits", whose labels name them
    both = [row for name in PARTS for row in glued(getattr(halves, name))]
    assert sorted(both) == sorted(tuple(row) for row in (grey >= 8).float().flatten(1).tolist())
    by_label = {}
    for image, label in zip(
        (grey >= 8).float().flatten(1).tolist(), load_digits().target, strict=True
    ):
        by_label.setdefault(tuple(image), set()).add(int(label))
    labels = [int(label) for name in PARTS for label in getattr(whole, name)[1]]
    assert all(label in by_label[row] for row, label in zip(both, labels, strict=True))


def test_mnist_is_cut_by_sizes_and_no_image_is_in_two_parts(mnist):
    halves = gfo.data.load("mnist-halves", sizes=(30, 10, 20))
    parts = [glued(getattr(halves, name)) for name in PARTS]
    assert [len(part) for part in parts] == [30, 10, 20, 20] and halves.classes == 392
    rows = [row for part in parts for row in part]
    assert len(set(rows)) == 80
    assert parts[3] == [tuple(row) for row in (mnist[20] >= 128).float().flatten(1).tolist()]
    assert {*parts[0], *parts[1], *parts[2]} == {
        tuple(row) for row in (mnist[60] >= 128).float().flatten(1).tolist()
    }
    assert (
        gfo.data.load("mnist-halves", sizes=(30, 10, 20), seed=1).train[0].ne(halves.train[0]).any()
    )


def test_mnist_takes_sizes_and_says_where_they_ask_for_too_much(mnist):
    small = gfo.data.load("mnist", sizes=(20, 5, 5))
    assert [len(getattr(small, name)[1]) for name in PARTS] == [20, 5, 5, 20]
    with pytest.raises(ValueError, match="mnist has 60 images to divide"):
        gfo.data.load("mnist-halves")


def test_the_inverse_problem_is_its_formula_and_noise():
    splits = gfo.data.load("inverse", seed=3)
    parts = [splits.train, splits.valid, splits.tune, splits.test]
    assert [len(x) for x, _ in parts] == [2000, 500, 500, 1000]
    x, y = (torch.cat(t) for t in zip(*parts, strict=True))
    noise = x - y - 0.3 * torch.sin(2 * torch.pi * y)
    # 4,000 draws: mean and sd within four standard errors; y uniform, by Kolmogorov's 1.95 / √n
    assert abs(noise.mean()) < 4 * 0.05 / 4000**0.5
    assert abs(noise.std() - 0.05) < 4 * 0.05 / 8000**0.5
    grid = torch.linspace(0, 1, 4000)
    assert (y.flatten().sort().values - grid).abs().max() < 1.95 / 4000**0.5
    assert len(y.unique()) > 3990  # no pair is in two parts
