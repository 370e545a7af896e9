"""Coverage: exactly, by leaving each example out, and in its band over splits of real networks."""

import math
from fractions import Fraction

import pytest
import torch
from conftest import toy_model

import gfo
from gfo.evaluate.conformal import Intervals, Sets

SPLITS, CALIBRATION, TEST = 20, 200, 300
# All 20 inside: the chance that a right one is not, over both tests, is below 20 · 2 · 1e-4.
LEVEL = 1 - 1e-4


def classes(n=60, k=4, seed=0):
    """A forecast that is wrong: sharper than the labels are drawn from."""
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(n, k, generator=gen)
    y = torch.multinomial(a.softmax(1), 1, generator=gen).squeeze(1)
    return (3 * a).softmax(1), y


def numbers(n=60, d=1, seed=0):
    """Means and sds that are wrong: the noise is twice the sd, and skew."""
    gen = torch.Generator().manual_seed(seed)
    mean, sd = torch.randn(n, d, generator=gen), 0.1 + torch.rand(n, d, generator=gen)
    return mean, sd, mean + 2 * sd * (torch.rand(n, d, generator=gen).log() + 1)


DATA = {"sets": (Sets, classes), "intervals": (Intervals, numbers)}


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("kind", DATA)
def test_left_out_in_turn_exactly_k_of_n_plus_1_are_inside(kind, alpha):
    """Exchangeability as a count: no tolerance."""
    make, draw = DATA[kind]
    data = draw(40)
    inside = []
    for i in range(40):
        rest = torch.arange(40) != i
        region = make(*(t[rest] for t in data), alpha=alpha)
        inside.append(region.coverage(*(t[i : i + 1] for t in data)))
    assert sum(inside) == region.k and region.promised == region.k / 40


@pytest.mark.parametrize("alpha", ["0.05", "0.07", "0.1", "0.3", "0.29"])
def test_the_rank_is_that_of_exact_arithmetic_and_the_threshold_that_of_counting(alpha):
    share = Fraction(alpha)
    least = math.ceil(1 / share) - 1
    for n in (*range(least, least + 40), 999):
        probs, y = classes(n)
        region = Sets(probs, y, alpha=float(alpha))
        k = math.ceil((n + 1) * (1 - share))
        scores = 1 - probs[torch.arange(n), y]
        want = next(t for t in sorted(scores.tolist()) if int((scores <= t).sum()) >= k)
        assert region.k == k and region.threshold == want
        assert region.promised >= 1 - float(alpha) - 1e-12
    for make, draw in DATA.values():
        with pytest.raises(ValueError, match="calibrate on more examples") as caught:
            make(*draw(least - 1), alpha=float(alpha))
        assert f"1 / {least}" in str(caught.value) and "\n" not in str(caught.value)


def test_the_band_is_that_of_ranks_by_counting():
    """j of m new scores lie below the k-th of n old ones in C(k−1+j, j) C(n−k+m−j, m−j) ways."""
    region, m, level = Sets(*classes(29), alpha=0.1), 17, 0.9
    n, k = region.n, region.k
    ways = [math.comb(k - 1 + j, j) * math.comb(n - k + m - j, m - j) for j in range(m + 1)]
    total = math.comb(n + m, m)
    assert sum(ways) == total
    low, high = (round(m * end) for end in region.band(m, level))
    assert sum(ways[:low]) <= 0.05 * total < sum(ways[: low + 1])
    assert sum(ways[:high]) < 0.95 * total <= sum(ways[: high + 1])
    mean = sum(j * w for j, w in enumerate(ways)) / total / m
    assert mean == pytest.approx(region.promised)


def splits(make, data):
    """Coverage of `SPLITS` random splits and their band, which of ranks is exact whatever data."""
    found = []
    for seed in range(SPLITS):
        gen = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data[0]), generator=gen).split([CALIBRATION, TEST])
        region = make(*(t[order[0]] for t in data), alpha=0.1)
        found.append(region.coverage(*(t[order[1]] for t in data)))
    low, high = region.band(TEST, LEVEL)
    binomial = (0.9 * 0.1 / TEST) ** 0.5
    sd = (region.k * (region.n + 1 - region.k) / (region.n + 2)) ** 0.5 / (region.n + 1)
    assert (high - low) > 6 * binomial and sd > 0.9 * binomial  # the set of calibration counts too
    return torch.tensor(found), low, high, region.promised


def test_a_networks_sets_cover_as_promised_on_20_splits():
    torch.manual_seed(0)
    x = torch.randn(800, 6)
    y = (x[:, :3] + torch.randn(800, 3)).argmax(1)
    net = gfo.attach(*toy_model(units=(16, 8)), "random", x[:2])
    gfo.fit(net, (x[:300], y[:300]), epochs=8, lr={"backbone": 0.02}, progress=False)
    probs = gfo.predict(net, x[300:])
    wrong = probs**4 / (probs**4).sum(1, keepdim=True)  # far too sure
    for p in (probs, wrong):
        found, low, high, promised = splits(Sets, (p, y[300:]))
        assert ((low <= found) & (found <= high)).all()
        # five standard errors of a mean of 20, were they independent: splits of one pool are not
        assert float(found.mean()) == pytest.approx(promised, abs=0.03)
    assert float((wrong.max(1).values[wrong.argmax(1) != y[300:]] > 0.9).float().mean()) > 0.1


def test_a_networks_intervals_cover_as_promised_on_20_splits():
    torch.manual_seed(0)
    x = torch.randn(800, 6)
    y = x[:, :2] + x[:, 2:3].abs() * torch.randn(800, 2)
    net = gfo.attach(*toy_model(units=(16, 8), classes=4), "random", x[:2],
                     likelihood=gfo.Gaussian())  # fmt: skip
    gfo.fit(net, (x[:300], y[:300]), epochs=8, lr={"backbone": 0.02}, progress=False)
    dist = gfo.predictive(net, x[300:])
    for data in (
        (dist.mean[:, :1], dist.stddev[:, :1], y[300:, :1]),
        (dist.mean, dist.stddev / 7, y[300:]),  # both targets at once, by an sd that is no sd
    ):
        found, low, high, promised = splits(Intervals, data)
        assert ((low <= found) & (found <= high)).all()
        assert float(found.mean()) == pytest.approx(promised, abs=0.03)


def test_sets_hold_the_classes_whose_score_is_admitted():
    probs, y = classes()
    region = Sets(probs, y, alpha=0.2)
    inside = region(probs)
    assert inside.dtype == torch.bool and torch.equal(inside, 1 - probs <= region.threshold)
    assert region.coverage(probs, y) == float(inside[torch.arange(60), y].double().mean())
    larger = Sets(probs, y, alpha=0.05)(probs)
    assert (larger | ~inside).all() and larger.sum() > inside.sum()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(Sets(probs[:, order], order.argsort()[y], alpha=0.2)(probs[:, order]),
                       inside[:, order])  # fmt: skip
    assert not region(torch.full((1, 4), 0.25)).any() or region.threshold >= 0.75


def test_intervals_hold_what_their_score_says_and_move_with_the_units():
    mean, sd, y = numbers(d=2)
    region = Intervals(mean, sd, y, alpha=0.2)
    low, high = region(mean, sd)
    torch.testing.assert_close((high - low) / 2, region.threshold * sd)
    inside = ((low <= y) & (y <= high)).all(1)
    # the one example that is the threshold lies on an edge, where rounding decides
    assert abs(region.coverage(mean, sd, y) - float(inside.double().mean())) <= 1 / 60 + 1e-12
    other = Intervals(5 - 3 * mean, 3 * sd, 5 - 3 * y, alpha=0.2)
    assert other.threshold == pytest.approx(region.threshold, rel=1e-4)
    assert Intervals(mean, 2 * sd, y, alpha=0.2).threshold == region.threshold / 2


def test_bad_input_is_one_line():
    probs, y = classes()
    mean, sd, t = numbers()
    for call, message in (
        (lambda: Sets(probs, y, alpha=0), r"alpha=0 is not in \[1 / 61, 1\)"),
        (lambda: Sets(probs, y, alpha=1.0), "is not in"),
        (lambda: Sets(probs, y, alpha=math.nan), "is not in"),
        (lambda: Sets(2 * probs, y), "no class probabilities"),
        (lambda: Sets(probs, y[:5]), "no class probabilities"),
        (lambda: Sets(probs, y).coverage(probs, y + 1), "no class probabilities"),
        (lambda: Intervals(mean, sd, t[:, 0]), "one shape"),
        (lambda: Intervals(mean[:, 0], sd[:, 0], t[:, 0]), "one shape"),
        (lambda: Intervals(mean, 0 * sd, t), "sd > 0"),
        (lambda: Intervals(mean, -sd, t), "sd > 0"),
        (lambda: Intervals(mean, sd, t / 0), "finite"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_is_called_is_checked_as_what_calibrates():
    gen = torch.Generator().manual_seed(0)
    logits, y = torch.randn(50, 3, generator=gen), torch.arange(50) % 3
    sets = Sets(logits.softmax(1), y)
    mean, sd = torch.randn(50, 1, generator=gen), torch.ones(50, 1)
    intervals = Intervals(mean, sd, mean + 1)
    for call in (
        lambda: sets(logits), lambda: sets(torch.full((2, 3), torch.nan)),
        lambda: intervals(mean, sd[:, 0]), lambda: intervals(mean, 0 * sd),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            call()
