"""Bernoulli and Gaussian networks against every mask, layer-wise and unit-wise."""

import copy

import pytest
import torch
import torch.distributions as td
from conftest import all_masks, shake, toy_model
from test_diagnose import exact_figures

import gfo
from gfo.audit import exact_audit, toys, trial
from gfo.core.batch import repeat_rows
from gfo.core.masked_pass import without_gradient
from gfo.core.noise import derive

POLICIES = ("layerwise", "unitwise")
# likelihood, outputs, inputs of the toy and what they are to tell
LIKELIHOODS = {
    "bernoulli": (gfo.Bernoulli, 3, 4),
    "gaussian": (gfo.Gaussian, 2, 3),
    "learned": (lambda: gfo.Gaussian(sd="learned"), 1, 3),
}


def data(name):
    """Iris: three bits of the species, or the sepal's width from the other three sizes."""
    x, label = toys.iris()
    if name == "bernoulli":
        return x, torch.nn.functional.one_hot(label, 3).float()
    return x[:, [0, 2, 3]], x[:, 1:2]


def shaken(name, policy, rows=4):
    create, outputs, inputs = LIKELIHOODS[name]
    torch.manual_seed(0)
    x, y = (t[::37][:rows] for t in data(name))
    model, sites = toy_model(units=(4, 3), inputs=inputs, classes=outputs)
    method = gfo.GFlowOut(policy=policy)
    net = shake(gfo.attach(model, sites, method, x, likelihood=create()), scale=0.15)
    net.likelihood.standardise([y])
    return net, x, y


def log_lik(net, outputs, y):
    if isinstance(net.likelihood, gfo.Bernoulli):
        return td.Bernoulli(logits=outputs).log_prob(y).sum(1)
    mean, log_sd = outputs.split(1, 1) if outputs.shape[1] == 2 else (
        outputs, net.likelihood.log_sd.detach().double())  # fmt: skip
    return td.Normal(mean, log_sd.exp()).log_prob(y).sum(1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_audit_is_exact(name, policy):
    """q sums to 1; R and the evidence are those of torch.distributions in float64."""
    net, x, y = shaken(name, policy)
    found = exact_audit.truth(net, x, y)
    assert (found.log_q.logsumexp(1).abs() < 1e-5).all()
    masks = all_masks((4, 3))
    for row in range(len(x)):
        many = repeat_rows((x[row : row + 1], y[row : row + 1]), len(masks[0]))
        out = without_gradient(net, *many, masks=masks)
        log_r = log_lik(net, out.logits.double(), many[1].double()) + out.log_p
        torch.testing.assert_close(found.log_reward[row], log_r, rtol=1e-5, atol=1e-5)
    table = gfo.audit_masks(net, x, y, draws=10)
    evidence = found.log_reward.logsumexp(1)
    assert table["log_evidence"].tolist() == pytest.approx(evidence.tolist())
    error = (gfo.score(net, x, y, gfo.sample(net, x, y)).log_z.double() - evidence).abs()
    assert table["log_z_error"].tolist() == pytest.approx(error.tolist(), abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_diagnose_agrees_with_enumeration_within_its_error(name, policy):
    net, x, y = shaken(name, policy)
    table, want = gfo.diagnose(net, x, y, samples=512), exact_figures(net, x, y)
    assert set(table.index) == set(want)
    for figure, value in want.items():
        assert abs(table.loc[figure, "value"] - value) <= 4 * table.loc[figure, "error"] + 1e-5


def trained_toy(name, seed, points=20):
    """As `toys.toy`, with another likelihood: trained with dropout, frozen."""
    create, outputs, inputs = LIKELIHOODS[name]
    torch.manual_seed(derive(seed, "toy"))
    x, y = data(name)
    model, sites = gfo.models.mlp(inputs=inputs, classes=outputs, hidden=(5, 5))
    with gfo.attach(model, sites, "random", x[:2], likelihood=create()) as net:
        how = dict(batch=32, lr={"backbone": 0.01}, seed=seed, device="cpu", progress=False)
        gfo.fit(net, (x, y), epochs=200, **how)
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:points]
    frozen = model.requires_grad_(False).eval()
    return toys.Toy(frozen, sites, x[some], y[some], copy.deepcopy(net.likelihood))


@pytest.mark.slow
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_unitwise_q_trained_as_the_audit_trains_is_the_posterior(name):
    toy = trained_toy(name, seed=1)
    on_policy = dict(prior=0.5, masks=16, temperature=1.0, random=0.0)
    tv = {}
    for policy in POLICIES:
        net = trial.trained(gfo.GFlowOut(policy=policy, **on_policy), toy, seed=1)
        tv[policy] = gfo.audit_masks(net, toy.x, toy.y, draws=10)["tv"].mean()
        assert torch.equal(net.likelihood.encode(toy.y), toy.likelihood.encode(toy.y))
        assert not gfo.diagnose(net, toy.x, toy.y)["flag"].any()
    untrained = gfo.attach(toy.model, toy.sites, "random", toy.x, likelihood=toy.likelihood)
    start = gfo.audit_masks(untrained, toy.x, toy.y, draws=10)["tv"].mean()
    assert tv["unitwise"] <= 0.02 and tv["unitwise"] < start / 5  # no easy test
    assert tv["unitwise"] < tv["layerwise"] < start
