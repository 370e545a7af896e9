"""Temperature against a grid, convexity, and what it must leave alone."""

import math

import pytest
import torch
from conftest import toy_model

import gfo
from gfo.evaluate.calibrate import Temperature
from gfo.evaluate.metrics import per_answer


def forecasts(sharp=2.5, n=400, classes=4, seed=0, shape=()):
    """Labels drawn from softmax(a), and probabilities softmax(sharp · a): too sure if sharp > 1."""
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(n, *shape, classes, generator=gen)
    y = torch.multinomial(a.softmax(-1).flatten(0, -2), 1, generator=gen).view(n, *shape)
    return (sharp * a).softmax(-1).movedim(-1, 1), y


def coins(sharp=2.5, n=300, seed=0):
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(n, 3, generator=gen)
    return (sharp * a).sigmoid(), torch.bernoulli(a.sigmoid(), generator=gen)


def with_gaps():
    """Labels of positions, some of which count nothing."""
    probs, y = forecasts(n=60, shape=(5,))
    y[:, 0] = -100
    return probs, y


CASES = {"classes": forecasts, "sharp enough": lambda: forecasts(0.4), "coins": coins,
         "positions": with_gaps}  # fmt: skip


def nll(probs, y, t=1.0):
    """By the formula, in nats per answer."""
    rows, labels = per_answer(probs.double(), y.double() if y.is_floating_point() else y)
    scaled = rows ** (1 / t)
    scaled = scaled / scaled.sum(1, keepdim=True)
    return -float(scaled.gather(1, labels[:, None]).log().mean())


@pytest.mark.parametrize("case", CASES)
def test_the_temperature_is_the_best_of_a_grid(case):
    probs, y = CASES[case]()
    found = Temperature(probs, y)
    grid = torch.linspace(math.log(0.05), math.log(20), 2001).exp().tolist()
    values = [nll(probs, y, t) for t in grid]
    best = min(range(len(grid)), key=values.__getitem__)
    # one step of the grid, 0.3 %, on either side
    assert grid[best - 1] < found.value < grid[best + 1]
    assert nll(probs, y, found.value) <= values[best] + 1e-9
    assert found.gain == pytest.approx(nll(probs, y) - nll(probs, y, found.value), abs=1e-6)
    assert found.gain > 0.01 and (found.value > 1) == (case != "sharp enough")


@pytest.mark.parametrize("case", CASES)
def test_the_nll_is_convex_in_one_over_t(case):
    probs, y = CASES[case]()
    values = torch.tensor([nll(probs, y, 1 / b) for b in torch.linspace(0.05, 5, 100).tolist()])
    bend = values.double().diff(n=2)
    assert bend.min() > -1e-7 and bend.max() > 1e-5  # float32 rounding of the stored values


def test_validation_never_gets_worse():
    for seed in range(60):
        gen = torch.Generator().manual_seed(seed)
        n, classes = 1 + seed % 7, 2 + seed % 3
        probs = (4 * torch.rand(1, generator=gen) * torch.randn(n, classes, generator=gen)).softmax(
            1
        )
        y = torch.randint(classes, (n,), generator=gen)  # which the forecast knows nothing of
        found = Temperature(probs, y)
        assert found.gain >= 0
        assert nll(found(probs.double()), y) <= nll(probs, y) + 1e-7  # float32 probabilities


def test_calibrating_twice_changes_nothing_and_a_power_is_undone():
    probs, y = forecasts()
    found = Temperature(probs.double(), y)
    again = Temperature(found(probs.double()), y)
    assert again.value == pytest.approx(1, abs=1e-4) and again.gain < 1e-8
    power = probs.double() ** 3
    power = power / power.sum(1, keepdim=True)
    assert Temperature(power, y).value == pytest.approx(3 * found.value, rel=1e-4)


def test_the_order_of_examples_and_classes_does_not_matter_and_answers_stay():
    probs, y = forecasts()
    found, order = Temperature(probs, y), torch.tensor([2, 0, 3, 1])
    moved = Temperature(probs[:, order].flip(0), order.argsort()[y].flip(0))
    assert moved.value == pytest.approx(found.value, rel=1e-4)
    scaled = found(probs)
    assert scaled.dtype == probs.dtype and scaled.shape == probs.shape
    assert torch.equal(scaled.argmax(1), probs.argmax(1))
    torch.testing.assert_close(scaled.sum(1), torch.ones(len(y)))


def test_coins_are_two_classes():
    p, y = coins()
    found = Temperature(p, y)
    two = Temperature(torch.stack((1 - p, p), 1), y.long())
    assert found.value == pytest.approx(two.value, rel=1e-4)
    torch.testing.assert_close(found(p), two(torch.stack((1 - p, p), 1))[:, 1])


def test_it_divides_the_log_of_the_average_not_the_logits_of_masks():
    logits = 3 * torch.randn(20, 200, 3, generator=torch.Generator().manual_seed(0))
    probs = logits.softmax(2).mean(0)
    y = torch.multinomial(probs**2, 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
    found = Temperature(probs, y)
    assert 0.3 < found.value < 0.8  # drawn from the square, so that 1/2 is right
    want = probs.double() ** (1 / found.value)
    want = want / want.sum(1, keepdim=True)
    torch.testing.assert_close(found(probs).double(), want, rtol=1e-5, atol=1e-6)
    each = (logits / found.value).softmax(2).mean(0)
    assert (found(probs) - each).abs().max() > 0.05


def test_nothing_to_gain_is_one_and_all_right_ends_at_the_bound():
    y = torch.arange(6) % 3
    flat = Temperature(torch.full((6, 3), 1 / 3), y)
    assert flat.value == 1 and flat.gain == 0
    right = torch.full((6, 3), 0.2) + 0.4 * torch.eye(3)[y]
    assert Temperature(right, y).value < 0.05  # below that the NLL rounds to 0
    sure = torch.eye(3)[(y + 1) % 3]  # zeros at the label: finite all the same
    assert math.isfinite(Temperature(sure, y).gain)


def test_what_has_no_answers_is_refused_in_one_line():
    x = torch.randn(9, 6)
    net = gfo.attach(*toy_model(classes=4), "random", x, likelihood=gfo.Gaussian())
    probs, y = forecasts(n=9)
    for p, labels in (
        (gfo.predict(net, x), torch.randn(9, 2)),
        (probs, torch.rand(9, 4)),  # degrees
        (probs, y[:4]),
        (probs, y + 4),
        (probs[:0], y[:0]),
        (probs, torch.full((9,), -100)),
    ):
        with pytest.raises(ValueError, match="no class probabilities") as caught:
            Temperature(p, labels)
        assert "\n" not in str(caught.value)


def test_what_is_called_is_checked_as_what_is_fitted():
    gen = torch.Generator().manual_seed(0)
    logits, y = torch.randn(50, 3, generator=gen), torch.arange(50) % 3
    scale = Temperature(logits.softmax(1), y)
    for wrong in (logits, logits.softmax(1).expand(5, 50, 3), logits.sigmoid()):
        with pytest.raises(ValueError):
            scale(wrong)
    coins = Temperature(logits.sigmoid(), (y[:, None] == torch.arange(3)).float())
    with pytest.raises(ValueError):
        coins(logits)
