"""The network of two ways against counts by hand, the best factorised q against its equations."""

import math

import pytest
import torch
from gfo_lab.experiments import audit
from gfo_lab.experiments.job import Job

import gfo
from gfo.audit import exact, layerwise_optimum, modes
from gfo.audit.exact_audit import truth

SHAPES = ((8,), (4, 4), (2, 4, 2), (6, 4))


def rewards(hidden):
    toy = modes.two_ways(hidden)
    with gfo.attach(
        toy.model, toy.sites, gfo.RandomDropout(), toy.x, likelihood=toy.likelihood
    ) as net:
        return truth(net, toy.x, toy.y).log_reward


@pytest.mark.parametrize("hidden", SHAPES)
def test_two_ways_has_two_modes_of_equal_mass_where_y_is_one_and_one_elsewhere(hidden):
    bits, log_post = sum(hidden), rewards(hidden).log_softmax(1)
    assert exact.local_modes(log_post).tolist() == [1, 2, 1]
    assert modes.states(hidden).bincount().tolist() == [
        (2 ** (bits // 2) - 1) ** 2, *[2 ** (bits // 2) - 1] * 2, 1
    ]  # fmt: skip
    # a mask's log-likelihood is −(y − how many are alive)² / 2 sd², up to a constant
    alive = torch.tensor([0, 1, 1, 2])[modes.states(hidden)]
    want = -((torch.arange(3)[:, None] - alive) ** 2) / (2 * 0.2**2)
    # the network computes in float32, of numbers up to 50
    torch.testing.assert_close(log_post, want.double().log_softmax(1), rtol=0, atol=1e-4)
    found = modes.shares(log_post, hidden)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    assert abs(found[1, 1] - found[1, 2]) < 1e-6 and found[1, 1] > 0.49
    assert found[0, 0] > 0.99 and found[2, 3] > 0.99


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match=r"hidden is \(5, 4\), two sub-networks need even widths"):
        modes.two_ways((5, 4))


def test_forward_optimum_has_the_posteriors_marginals_and_no_rival_is_nearer():
    torch.manual_seed(0)
    log_post = torch.randn(3, 64, dtype=torch.float64).mul(2).log_softmax(1)
    masks = torch.cat(exact.all_masks((6,)), 1).double()
    flat = layerwise_optimum.forward_layerwise(log_post, (6,))
    torch.testing.assert_close(flat.exp() @ masks, log_post.exp() @ masks)
    torch.testing.assert_close(
        layerwise_optimum.forward_layerwise(log_post, (1,) * 6), log_post
    )  # bit after bit any distribution is in reach
    for widths in ((6,), (3, 3), (2, 1, 3)):
        best = exact.kl(log_post, layerwise_optimum.forward_layerwise(log_post, widths))
        for _ in range(50):
            tables = layerwise_optimum._tables((3,), widths)
            near = [torch.randn_like(table) for table in tables]
            assert (best < exact.kl(log_post, layerwise_optimum.log_prob(near))).all()


def test_reverse_mean_field_holds_one_mode_and_the_forward_one_smears():
    """Coordinate ascent is another way to the optimum that `best_layerwise` descends to."""
    log_reward = rewards((4, 4))[1:2]
    log_post, masks = log_reward.log_softmax(1), torch.cat(exact.all_masks((4, 4)), 1).double()
    gen, kls = torch.Generator().manual_seed(0), []
    for _ in range(20):
        keep = torch.rand(8, generator=gen, dtype=torch.float64)
        for bit in list(range(8)) * 100:
            others = masks * keep.log() + (1 - masks) * (1 - keep).log()
            others[:, bit] = 0
            # E of log R under the other bits, with this one kept and dropped
            weighed = others.sum(1).exp() * log_reward[0]
            gap = weighed[masks[:, bit] > 0].sum() - weighed[masks[:, bit] == 0].sum()
            keep[bit] = gap.sigmoid().clamp(1e-12, 1 - 1e-12)
        log_q = (masks * keep.log() + (1 - masks) * (1 - keep).log()).sum(1)[None]
        kls.append(float(exact.kl(log_q, log_post)))
    best, _ = layerwise_optimum.best_layerwise(log_reward, (8,))
    # certain bits lie at infinity, where 200 steps do not arrive: they leave 0.02
    assert 0 < float(exact.kl(best, log_post)) - min(kls) < 0.03
    assert min(kls) > math.log(2)  # one mode of two costs that at least
    greater = modes.shares(best, (4, 4))[0, 1:3].sort(descending=True).values
    assert greater[0] > 0.95 and greater[1] < 0.01
    # keep 3 of 4 each, nearly: a mode is 4 bits kept and not all of the others
    flat = modes.shares(layerwise_optimum.forward_layerwise(log_reward, (8,)), (4, 4))[0]
    keep = float((log_post.exp() @ masks)[0, 0])
    torch.testing.assert_close(flat[1:3], torch.full((2,), keep**4 * (1 - keep**4)).double())
    assert flat[0] > 0.4


def test_a_record_of_modes_says_where_the_mass_of_q_is():
    config = dict(units=[2, 2], method=dict(prior=0.5, masks=4), steps=2, lr=0.01)
    found = audit.run_modes(Job("two-ways", "gflowout", 0, config))
    mass = [found[f"mode_{name}"] for name in ("greater", "lesser", "neither", "both")]
    assert sum(mass) == pytest.approx(1) and mass[0] >= mass[1]
    # two steps from fair coins: each of the four bits is kept half of the time
    assert mass == pytest.approx([3 / 16, 3 / 16, 9 / 16, 1 / 16], abs=0.05)
    grid = audit.mode_configs("two-ways", "gflowout", "full")
    assert len({str(each) for each in grid}) == len(grid) == 19
