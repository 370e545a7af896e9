"""Masksembles: a law by counting, each mask once, and the split of a batch over the masks."""

import itertools
import math
import warnings

import pytest
import torch
from conftest import Net, toy_model
from torch import nn

import gfo
from gfo.core.masked_pass import BatchPass
from gfo.evaluate.marginal import log_predictive_curve
from gfo.methods.masksembles import draw_masks

X = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))  # two blocks of a prediction
Y = torch.arange(300) % 3


def masked(**config):
    torch.manual_seed(0)
    model, sites = toy_model((12, 10))
    return gfo.attach(model, sites, gfo.Masksembles(**config), X[:2])


def masks_of(net):
    """(count, C) per site."""
    return [net.method.get_buffer(f"masks_{layer}") for layer in range(len(net.sites))]


def given(net, number, rows):
    return [z[number].expand(rows, -1) for z in masks_of(net)]


# The masks


@pytest.mark.parametrize("width", [1, 3, 8, 64, 300])
@pytest.mark.parametrize("count", [1, 2, 4, 9])
@pytest.mark.parametrize("overlap", [1.0, 0.5, 0.2])
def test_masks_have_equally_many_ones_and_leave_no_unit_out(width, count, overlap):
    torch.manual_seed(0)
    masks = draw_masks(width, count, overlap)
    assert masks.shape == (count, width) and ((masks == 0) | (masks == 1)).all()
    assert masks.any(0).all() and len(set(masks.sum(1).tolist())) == 1
    assert overlap < 1 or masks.all()


@pytest.mark.parametrize("overlap", [0.7, 0.4, 0.2])
def test_two_masks_share_what_overlap_says(overlap):
    torch.manual_seed(0)
    masks = draw_masks(4000, 4, overlap)
    ones = int(masks[0].sum())
    shared = torch.tensor([float(a @ b) for a, b in itertools.combinations(masks, 2)]) / ones
    # one pair: hypergeometric, variance below binomial o(1 − o)/ones; six pairs, hardly dependent;
    # and ones and places are whole numbers, the latter moved by their own deviation
    error = math.sqrt(overlap * (1 - overlap) / ones)
    assert abs(float(shared.mean()) - overlap) < 3 * error
    # the paper's law of the width: ones · S (1 − (1 − 1/S)^count), S = 1 / overlap
    assert ones * (1 - (1 - overlap) ** 4) / overlap == pytest.approx(4000, abs=4)


def test_small_masks_follow_their_law_by_counting():
    """Of 3 units, two masks of two ones each: by symmetry six equally likely pairs, all unequal."""
    torch.manual_seed(0)
    seen, n = {}, 3000
    for _ in range(n):
        pair = tuple(map(tuple, draw_masks(3, 2, 0.5).tolist()))
        seen[pair] = seen.get(pair, 0) + 1
    assert len(seen) == 6 and all(a != b and sum(a) == sum(b) == 2 for a, b in seen)
    sd = math.sqrt(n * 1 / 6 * 5 / 6)
    assert max(abs(count - n / 6) for count in seen.values()) < 4 * sd  # six normals


def test_bad_arguments_are_named():
    for config, message in (
        ({"count": 0}, "count is 0"), ({"overlap": 0.0}, r"overlap is 0.0, needs to be in \[0.1"),
        ({"overlap": 2.0}, "overlap is 2.0"), ({"overlap": float("nan")}, "overlap is nan"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as caught:
            masked(**config)
        assert "\n" not in str(caught.value)


# A prediction


@pytest.mark.parametrize("samples", [1, 4, 5, 20])
def test_a_prediction_takes_each_mask_exactly_once(samples):
    net, seen = masked(), []
    logits = torch.stack(
        [gfo.masked_pass(net, X, masks=given(net, k, 300)).logits for k in range(4)]
    )
    net.model.out.register_forward_hook(lambda m, args, out: seen.append(len(out)))
    probs = gfo.predict(net, X, samples)
    # the passes before the first mask stop there; of each block of rows every mask runs once
    assert sum(seen) == 4 * len(X)
    torch.testing.assert_close(probs, logits.softmax(2).mean(0), rtol=0, atol=1e-6)
    for how in ({}, {"masks": "shared"}, {"memory": 1}, {"seed": 3}):
        found = gfo.sample_logits(net, X, samples, **how)
        torch.testing.assert_close(found, logits[torch.arange(samples) % 4], rtol=0, atol=1e-5)


def test_channels_are_masked_and_an_ensemble_goes_through_each_members_masks():
    nets, images = [], torch.randn(5, 3, 6, 6)
    for seed in range(2):
        torch.manual_seed(seed)
        nets.append(gfo.attach(Net(), ["stem.2", "bn"], gfo.Masksembles(count=3), images).eval())
    each = [
        torch.stack([gfo.masked_pass(n, images, masks=given(n, k, 5)).logits for k in range(3)])
        for n in nets
    ]
    want = torch.cat(each).softmax(2).mean(0)
    torch.testing.assert_close(gfo.predict(gfo.Ensemble(nets), images), want, rtol=0, atol=1e-6)
    found = gfo.sample_logits(gfo.Ensemble(nets), images, 8)  # 4 of each, in turn
    torch.testing.assert_close(found[1::2], each[1][[0, 1, 2, 0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [4, 30])
def test_a_curve_over_masks_ends_where_all_were_taken(count):
    net = masked(count=count)
    curve = log_predictive_curve(net, X, Y, (1, 2, count, 1000))
    log_lik = torch.stack(
        [gfo.score(net, X, Y, given(net, k, 300)).log_lik for k in range(count)]
    ).double()
    for place, taken in enumerate((1, 2, count, count)):
        want = log_lik[:taken].logsumexp(0) - math.log(taken)
        torch.testing.assert_close(curve[place], want, rtol=0, atol=1e-5)


def test_a_sampled_mask_is_one_of_them_at_every_site_and_each_is_as_likely():
    net, n = masked(count=4), 4000
    first, second = gfo.sample(net, torch.randn(n, 6), seed=2)
    numbers = [
        (z[:, None] == every[None]).all(2)
        for z, every in zip((first, second), masks_of(net), strict=True)
    ]
    both = numbers[0] & numbers[1]  # (n, 4): which masks a row's could be
    assert (both.sum(1) == 1).all()
    sd = math.sqrt(n / 4 * 3 / 4)
    assert (both.sum(0) - n / 4).abs().max() < 4 * sd
    score = gfo.score(net, X[:4], Y[:4], [z[:4] for z in (first, second)])
    assert score.log_q is None and score.log_p is None


def test_one_common_network_at_overlap_1_and_the_mean_mask_in_a_bare_call():
    net = masked(overlap=1.0)
    torch.testing.assert_close(gfo.predict(net, X), net.model(X).softmax(1))
    loss = net.loss(X, Y, n=300, step=0).total
    torch.testing.assert_close(loss, nn.functional.cross_entropy(net.model(X), Y))
    net = masked().eval()
    h = torch.relu(net.model.fc1(X)) * masks_of(net)[0].mean(0)
    h = torch.relu(net.model.fc2(h)) * masks_of(net)[1].mean(0)
    torch.testing.assert_close(net(X), net.model.out(h))


# A training step


@pytest.mark.parametrize("rows", [1, 16, 17])
def test_a_batch_is_split_over_the_masks(rows):
    net, x, y = masked(count=4), X[:rows], Y[:rows]
    run = BatchPass(net, x, y, (0, "test"))
    parts, first = [], int(run.noise().explore[0, 0] * 4)  # 0 where all have their turn
    assert rows == 1 or first == 0
    for k in range(min(4, rows)):  # the part of one mask, by itself
        part = x[k::4]
        out = gfo.masked_pass(net, part, y[k::4], masks=given(net, first + k, len(part)))
        parts.append(out.log_lik)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    found = net.method.loss(run, 300).parts["nll"]
    torch.testing.assert_close(found, -torch.cat(parts).mean())
    assert torch.equal(
        run(source="train").masks[1], masks_of(net)[1][(first + torch.arange(rows)) % 4]
    )


def test_torch_uncertainty_applies_masks_alike():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others warn of while they are imported
        theirs = pytest.importorskip("torch_uncertainty.layers.masksembles")
    layer = theirs.Mask1d(12, 4, 2.0, device="cpu")
    net, rows = masked(count=4), 16
    net.method.masks_0 = layer.masks.float()
    h = torch.relu(net.model.fc1(X[:rows]))
    blocks = layer(
        h[torch.arange(rows).view(-1, 4).T.flatten()]
    )  # they split in blocks, we in turn
    mask = BatchPass(net, X[:rows], Y[:rows], (0, "test"))(source="train").masks[0]
    torch.testing.assert_close(h * mask, blocks.view(4, 4, -1).transpose(0, 1).flatten(0, 1))
    # their masks keep our promises, ours theirs: as many ones, no unit left out
    torch.manual_seed(0)
    a, b = torch.as_tensor(theirs.generation_wrapper(512, 4, 2.0)), draw_masks(512, 4, 0.5)
    for masks in (a, b):
        assert masks.any(0).all() and len(set(masks.sum(1).tolist())) == 1
    assert abs(float(a[0].sum() - b[0].sum())) <= 1  # they round down


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6])
def test_in_training_each_mask_has_its_turn_however_small_the_batch(rows):
    """Turns began at the first mask in every step, so that batches of two never had the others."""
    net, took = masked(count=4, overlap=0.5), torch.zeros(4)
    for step in range(200):
        noise = BatchPass(net, X[:rows], Y[:rows], (0, "train", step)).noise()
        turns = (noise.explore[:, 0] * 4).long()
        assert len(set(turns.tolist())) == min(rows, 4)
        assert rows < 4 or turns.tolist() == [row % 4 for row in range(rows)]
        took += turns.bincount(minlength=4)
    # uniform starts: 200 steps, binomial with p of 1/4 at least, four standard errors
    if rows < 4:
        assert (took / took.sum() - 0.25).abs().max() < 4 * (0.25 * 0.75 / 200) ** 0.5
