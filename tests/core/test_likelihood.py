"""Class weights and soft targets: closed forms, used alike wherever a likelihood is."""

import math

import pytest
import torch
from conftest import all_masks, shake, toy_model
from torch.testing import assert_close

import gfo
from gfo.core.masked_pass import BatchPass
from gfo.train.fit import predictive_nll

WEIGHTS = [0.5, 2.0, 3.0]
SOFT = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.9, 0.6], [0.0, 0.0, 0.0], [1.0, 1.0, 0.3]])
HARD = torch.tensor([0, 2, 1, 2])


def make(likelihood=None, method="gflowout"):
    torch.manual_seed(0)
    model, sites = toy_model()
    x = torch.randn(4, 6)
    return shake(gfo.attach(model, sites, method, x, likelihood=likelihood)), x


def by_hand(name, logits, y):
    """log p(y | x, z) in float64, from the definition."""
    a = logits.double()
    if name == "weights":
        log_p = a - a.exp().sum(1, keepdim=True).log()
        return torch.tensor([WEIGHTS[k] * log_p[b, k].item() for b, k in enumerate(y.tolist())])
    p = 1 / (1 + (-a).exp())
    return (y * p.log() + (1 - y) * (1 - p).log()).sum(1)


CASES = {
    "weights": (lambda: gfo.Categorical(WEIGHTS), HARD),
    "soft": (lambda: gfo.SoftTargets(), SOFT),
}


@pytest.mark.parametrize("name", CASES)
def test_score_loss_and_reward_hold_the_closed_form(name):
    create, y = CASES[name]
    net, x = make(create())
    run = BatchPass(net, x, y, (0, "step", 0, 0))
    out = run(source="train")  # what the loss below will see
    expected = by_hand(name, out.logits, y)
    as_float32 = dict(rtol=1e-5, atol=1e-5, check_dtype=False)
    assert_close(gfo.score(net, x, y, out.masks).log_lik, expected, **as_float32)
    loss = net.method.loss(run, len(y))
    assert_close(loss.parts["nll"], -expected.mean(), **as_float32)
    log_reward = expected + out.log_p
    tb = (out.log_z + out.log_q - log_reward).square().mean()
    assert_close(loss.parts["tb"], tb, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_unit_weights_change_nothing_and_no_weights_are_the_default():
    (plain, x), (ones, _) = make(), make(gfo.Categorical([1.0, 1.0, 1.0]))
    masks = gfo.sample(plain, x, HARD, seed=0)
    for a, b in zip(gfo.score(plain, x, HARD, masks), gfo.score(ones, x, HARD, masks), strict=True):
        assert torch.equal(a, b)
    assert repr(plain.likelihood) == "Categorical()"


def test_hard_soft_targets_are_coins_and_the_best_logit_is_the_target_itself():
    logits = torch.tensor([[0.3, -2.0, 40.0], [1.0, 0.0, -40.0]])
    y = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    coins = torch.distributions.Bernoulli(logits=logits).log_prob(y).sum(1)
    assert_close(gfo.SoftTargets().log_lik(logits, y), coins)
    assert torch.isfinite(gfo.SoftTargets().predictive_nll(logits.sigmoid(), y)).all()
    target = torch.tensor([[0.3, 0.6, 0.9]])
    a = torch.logit(target).requires_grad_()
    gfo.SoftTargets().log_lik(a, target).sum().backward()
    assert_close(a.grad, torch.zeros(1, 3), rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("name", CASES)
def test_early_stopping_watches_the_averaged_predictive_under_the_same_likelihood(name):
    create, y = CASES[name]
    net, x = make(create())
    logits = gfo.sample_logits(net, x, 20).double()
    if name == "weights":
        probs = logits.softmax(-1).mean(0)
        picked = [WEIGHTS[k] * math.log(probs[b, k]) for b, k in enumerate(y.tolist())]
        expected = -sum(picked) / len(y)
    else:
        probs = logits.sigmoid().mean(0)
        expected = -float((y * probs.log() + (1 - y) * (1 - probs).log()).sum(1).mean())
    assert_close(gfo.predict(net, x, 20).double(), probs, rtol=1e-5, atol=1e-6)
    assert predictive_nll(net, (x, y), 20) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_public_functions_work_unchanged(name):
    create, y = CASES[name]
    for method in ("id-gflowout", "contextual"):
        net, x = make(create(), method)
        gfo.fit(net, (x, y), (x, y), epochs=1, batch=2, samples=2, progress=False, device="cpu")
        assert gfo.predict(net, x).shape == (4, 3)
    net, x = make(create())
    assert len(gfo.diagnose(net, x, y, samples=32)) > 5
    one = [m.unsqueeze(1).expand(-1, 4, -1) for m in all_masks((4, 3))]  # each (128, 4, C)
    masks = zip(*one, strict=True)
    total = sum(gfo.score(net, x, y, list(z)).log_q.exp() for z in masks)
    assert_close(total, torch.ones(4), rtol=0, atol=1e-5)  # q(z | x, y) reads either kind of y


BAD = {
    "no vector": (lambda: gfo.Categorical([[1.0, 2.0]]), "one per class"),
    "zero weight": (lambda: gfo.Categorical([1.0, 0.0]), "need to be positive"),
    "nan weight": (lambda: gfo.Categorical([1.0, math.nan]), "need to be positive"),
    "a word": (lambda: gfo.Categorical("balanced"), "weights are balanced"),
    "weights": (lambda: ask(gfo.Categorical([1.0, 2.0]), HARD), "2 class weights, the network"),
    "labels": (lambda: ask(gfo.SoftTargets(), HARD), "needs (4, 3) targets"),
    "integers": (lambda: ask(gfo.SoftTargets(), SOFT.long()), "use y.float()"),
    "above": (lambda: ask(gfo.SoftTargets(), 2 * SOFT), "soft targets run 0…2"),
    "nan target": (lambda: ask(gfo.SoftTargets(), SOFT * math.nan), "lie in [0, 1]"),
}


def ask(likelihood, y):
    net, x = make(likelihood)
    gfo.fit(net, (x, y), progress=False)


@pytest.mark.parametrize("name", BAD)
def test_bad_weights_and_targets_are_named_in_one_line(name):
    call, message = BAD[name]
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_file_remembers_which_likelihood_it_was_trained_for(tmp_path):
    path = tmp_path / "net.pt"
    net, x = make(gfo.Categorical(WEIGHTS))
    gfo.save(net, path)
    again = gfo.load(path, toy_model()[0], likelihood=gfo.Categorical(WEIGHTS))
    assert torch.equal(gfo.predict(again, x), gfo.predict(net, x))
    for other in (None, gfo.Categorical([1.0, 2.0, 3.0]), gfo.SoftTargets()):
        with pytest.raises(ValueError, match="holds another likelihood"):
            gfo.load(path, toy_model()[0], likelihood=other)
    gfo.save(make()[0], path)
    with pytest.raises(ValueError, match="holds another likelihood: the default there"):
        gfo.load(path, toy_model()[0], likelihood=gfo.SoftTargets())


@pytest.mark.parametrize("method", ["random", "gflowout"])
def test_a_likelihood_that_is_no_number_per_row_is_refused(method):
    class Counts(gfo.Likelihood):  # which forgets Independent
        def distribution(self, outputs):
            return torch.distributions.Poisson(outputs.exp())

    x, y = torch.randn(8, 6), torch.ones(8, 3)
    net = gfo.attach(*toy_model(), method, x[:2], likelihood=Counts())
    with pytest.raises(ValueError, match=r"log_lik is \(8, 3\), needs \(B,\)"):
        net.loss(x, y, n=8, seed=0, step=0)
