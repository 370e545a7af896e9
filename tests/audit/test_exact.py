"""Enumeration itself, against counts done another way."""

import math

import pytest
import torch
from conftest import all_masks, toy_model

import gfo
from gfo.audit import exact, toys


def test_all_masks_are_all_and_in_binary_order():
    masks = torch.cat(exact.all_masks((3, 2)), 1)
    assert torch.equal(masks, torch.cat(all_masks((3, 2)), 1))
    assert len({tuple(row.tolist()) for row in masks}) == 32


def test_posterior_is_bayes_and_evidence_its_normaliser():
    toy = toys.toy(hidden=(3, 2), points=4)
    net = gfo.attach(toy.model, toy.sites, gfo.RandomDropout(), toy.x)
    score = exact.score_all(net, toy.x, toy.y)
    post, evidence = exact.log_posterior(score.log_lik, score.log_p)
    torch.testing.assert_close(post.exp().sum(1), torch.ones(4))
    want = score.log_lik.exp().mean(1).log()  # the prior is uniform
    torch.testing.assert_close(evidence, want, rtol=1e-5, atol=1e-6)


def test_divergences_against_hand_counts():
    a = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    b = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    assert exact.total_variation(a, b).item() == pytest.approx(0.5)
    assert exact.kl(a, b).item() == pytest.approx(math.log(2))


def test_local_modes_count_plateaus_once():
    two = torch.tensor([[0.0, -1.0, -1.0, 0.0]])  # 00 and 11
    tied = torch.tensor([[0.0, 0.0, -1.0, -1.0]])  # the second bit changes nothing
    flat = torch.zeros(1, 8)
    # 000 ties with 001, which 011 beats: the plateau is no mode, though 000 has no better neighbour
    slope = torch.tensor([[0.0, 0.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
    assert [exact.local_modes(t).item() for t in (two, tied, flat, slope)] == [2, 1, 1, 1]


def test_too_many_bits_and_tokens_are_refused():
    with pytest.raises(ValueError, match=r"17 mask bits make 2\^17 masks"):
        exact.all_masks((9, 8))
    model, sites = toy_model(units=(9, 8))
    x = torch.randn(2, 6)
    net = gfo.attach(model, sites, "random", x)
    with pytest.raises(ValueError, match="16 bits is the limit"):
        exact.score_all(net, x, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("points", [0, 151])
def test_a_toy_has_the_points_it_was_asked_for_or_is_refused(points):
    with pytest.raises(ValueError, match=f"points is {points}, iris has 1 to 150") as error:
        toys.toy((2, 2), points=points)
    assert "\n" not in str(error.value)
