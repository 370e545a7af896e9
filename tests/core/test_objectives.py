"""The family of objectives and the two policies, against enumeration."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import all_masks, shake, toy_model
from gfo_lab.records import config_hash

import gfo
from gfo.core.masked_pass import BatchPass, masked_pass
from gfo.core.noise import draw_noise, generator
from gfo.core.objectives import (
    OBJECTIVES,
    free_objectives,
    kl_bernoulli,
    log_partition_variance,
    reverse_kl,
    sub_trajectory_balance,
    trajectory_balance,
)
from gfo.methods import create

NAMES = ("tb", "vargrad", "subtb", "reverse-kl")
POLICIES = ("layerwise", "unitwise")


def method(objective="tb", policy="layerwise", **config):
    return gfo.GFlowOut(objective=objective, policy=policy, **{"masks": 2, **config})


def make(batch=8, **config):
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(batch, 6), torch.arange(batch) % 3
    return shake(gfo.attach(model, sites, method(**config), x)), x, y


# --- gradients, over every pair of five outcomes, in float64


@pytest.fixture
def tabular():
    gen = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=gen, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(5, generator=gen, dtype=torch.float64)


def expected_gradient(loss, logits, log_reward, k=2):
    """∇ of E[loss] over all k-tuples drawn from q, q itself not differentiated in the weights."""
    log_q = logits.log_softmax(0)
    index = torch.cartesian_prod(*[torch.arange(5)] * k).reshape(-1, k).T  # (k, 5^k)
    weight = log_q[index].sum(0).exp().detach()
    value = (weight * loss(log_q[index], log_reward[index])).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def exact_kl(logits, log_reward):
    log_q = logits.log_softmax(0)
    value = (log_q.exp() * (log_q - log_reward)).sum()  # KL − log Z
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_reverse_kl_is_unbiased(tabular):
    value, gradient = expected_gradient(reverse_kl, *tabular)
    want, want_gradient = exact_kl(*tabular)
    torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-12)  # float64 sums of 25 terms
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("log_z", [None, -3.0, 0.7])
def test_on_policy_squared_residuals_have_twice_the_gradient_of_kl(tabular, log_z):
    """VarGrad for K = 2 (unbiased variance), trajectory balance for any constant log Z."""
    if log_z is None:
        _, gradient = expected_gradient(log_partition_variance, *tabular)
    else:
        z = torch.tensor(log_z, dtype=torch.float64)
        _, gradient = expected_gradient(
            lambda q, r: trajectory_balance(z, q, r).sum(0), *tabular, k=1
        )
    torch.testing.assert_close(gradient, 2 * exact_kl(*tabular)[1], rtol=1e-10, atol=1e-12)


# --- SubTB


def reference_subtb(log_flows, log_q, lam):
    """Ten lines of loops: every sub-trajectory, weighed by λ to its length."""
    total, weights = 0.0, 0.0
    for i in range(len(log_flows)):
        for j in range(i + 1, len(log_flows)):
            residual = log_flows[i] - log_flows[j]
            for layer in range(i, j):
                residual = residual + log_q[layer]
            total = total + lam ** (j - i) * residual**2
            weights += lam ** (j - i)
    return total / weights


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("lam", [0.3, 0.9, 1.0, 4.0])
def test_subtb_is_its_reference_loop(layers, lam):
    gen = torch.Generator().manual_seed(layers)
    flows = torch.randn(layers + 1, 2, 7, generator=gen, dtype=torch.float64)
    log_q = torch.randn(layers, 2, 7, generator=gen, dtype=torch.float64)
    got = sub_trajectory_balance(flows, log_q, lam)
    torch.testing.assert_close(got, reference_subtb(flows, log_q, lam), rtol=1e-12, atol=1e-12)


def test_ends_of_subtb_are_detailed_balance_and_trajectory_balance():
    gen = torch.Generator().manual_seed(0)
    flows = torch.randn(4, 7, generator=gen, dtype=torch.float64)
    log_q = torch.randn(3, 7, generator=gen, dtype=torch.float64)
    balance = (flows[:-1] + log_q - flows[1:]).square().mean(0)
    torch.testing.assert_close(sub_trajectory_balance(flows, log_q, 0.0), balance)
    whole = trajectory_balance(flows[0], log_q.sum(0), flows[-1])
    for lam in (math.inf, 1e12):
        torch.testing.assert_close(sub_trajectory_balance(flows, log_q, lam), whole)


def test_subtb_is_zero_at_the_exact_flows():
    """F(s) = Σ of R below s on a tree of 2 layers of 1 bit; 0 but for rounding, squared."""
    log_r = torch.tensor([[0.3, -1.0], [0.1, 2.0]], dtype=torch.float64)
    first, root = log_r.logsumexp(1), log_r.logsumexp((0, 1))
    for a in range(2):
        for b in range(2):
            flows = torch.stack([root, first[a], log_r[a, b]])[:, None]
            log_q = torch.stack([first[a] - root, log_r[a, b] - first[a]])[:, None]
            assert sub_trajectory_balance(flows, log_q, 0.9).abs().max() < 1e-28


# --- GFlowOut's switches


def test_configs_and_hashes_of_recorded_runs_stand():
    """Arguments at their default stay out of config, so a recorded run keeps its identity."""
    known = {"gflowout": "f41f5ddddfbe", "gflowout-literal": "29998b40f4ac"}  # first records
    rest = {
        "model": "mlp", "hidden": [300, 100], "epochs": 40, "patience": 6, "batch": 128,
        "samples": 20, "lr": {"backbone": 1e-3, "masks": 1e-3, "log_z": 1e-2}, "optimizer": "adam",
    }  # fmt: skip
    for name, digest in known.items():
        assert config_hash({**rest, "method": create(name).config}) == digest
    results = Path(__file__).parents[2] / "book" / "results"
    for path in results.glob("rotation/*gflowout*.json"):
        record = json.loads(path.read_text())
        config = record["config"]["method"]
        assert create(record["method"], **config).config == config
    full = gfo.GFlowOut(objective="subtb", masks=4, policy="unitwise", lam=0.5, keep=0.9)
    assert {k: full.config[k] for k in ("objective", "masks", "policy", "lam", "keep")} == {
        "objective": "subtb", "masks": 4, "policy": "unitwise", "lam": 0.5, "keep": 0.9,
    }  # fmt: skip


def test_default_loss_is_trajectory_balance_to_the_bit():
    net, x, y = make(masks=1)
    run = BatchPass(net, x, y, (0, "test"))
    out = run(source="train")
    want = trajectory_balance(out.log_z, out.log_q, out.log_lik + out.log_p).mean()
    parts = net.method.loss(run, len(y)).parts
    assert list(parts) == ["nll", "tb", "prior"] and torch.equal(parts["tb"], want)


def test_folded_masks_are_a_loop_over_masks():
    net, x, y = make(masks=3, random=0.0)
    run = BatchPass(net, x, y, (0, "test"))
    folded = net.method.loss(run, len(y)).parts["tb"]
    masks = [m.unflatten(0, (3, -1)) for m in run(repeat=3).masks]
    loop = []
    for k in range(3):
        out = masked_pass(net, x, y, masks=[m[k] for m in masks])
        loop.append(trajectory_balance(out.log_z, out.log_q, out.log_lik + out.log_p).mean())
    torch.testing.assert_close(folded, torch.stack(loop).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("objective", NAMES)
def test_each_objective_moves_its_own_networks_only(objective, policy):
    net, x, y = make(objective=objective, policy=policy)
    loss = net.method.loss(BatchPass(net, x, y, (0, "test")), len(y))
    assert (net.method.log_z is None) == (objective in ("vargrad", "reverse-kl"))
    parts = {"backbone": net.model, "q": net.method.q, "p": net.method.p}
    parts |= {"log_z": net.method.log_z} if net.method.log_z else {}
    parts |= {"flow": net.method.flow.nets[1]} if objective == "subtb" else {}
    for part, moved in {
        "nll": {"backbone"},
        objective: set(parts) - {"backbone", "p"},
        "prior": {"p"},
    }.items():
        net.zero_grad()
        loss.parts[part].backward(retain_graph=True)
        for name, module in parts.items():
            norms = [p.grad.abs().max() for p in module.parameters() if p.grad is not None]
            assert (bool(norms) and max(norms) > 0) == (name in moved), (part, name)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("objective", NAMES)
def test_each_combination_fits_saves_and_loads(objective, policy, tmp_path):
    net, x, y = make(objective=objective, policy=policy)
    history = gfo.fit(net, (x, y), epochs=2, batch=4, device="cpu", progress=False)
    assert objective in history and history.notna().all(axis=None)
    gfo.save(net, tmp_path / "net.pt")
    again = gfo.load(tmp_path / "net.pt", toy_model()[0])
    assert torch.equal(gfo.predict(net, x), gfo.predict(again, x))
    assert torch.equal(gfo.predict(net, x), gfo.predict(copy.deepcopy(net), x))


def test_bad_objectives_are_refused_in_one_line():
    with pytest.raises(ValueError, match="masks is 1, objective 'vargrad' needs at least 2"):
        gfo.GFlowOut(objective="vargrad")
    with pytest.raises(ValueError, match="unknown objective 'varggrad'; did you mean 'vargrad'"):
        gfo.GFlowOut(objective="varggrad")
    with pytest.raises(ValueError, match="unknown policy 'unit-wise'; did you mean 'unitwise'"):
        gfo.GFlowOut(policy="unit-wise")
    with pytest.raises(ValueError, match="lam is -1"):
        gfo.GFlowOut(objective="subtb", lam=-1)
    with pytest.raises(ValueError, match="needs log Z and this policy has none"):
        trajectory_balance(None, torch.zeros(3), torch.zeros(3))
    assert set(OBJECTIVES) - {"arm"} == set(NAMES) == set(free_objectives())


# --- the unit-wise policy


def every_mask(net, x, y):
    masks = all_masks([site.width for site in net.sites])
    n = len(masks[0])
    return masks, masked_pass(net, x[:1].repeat(n, 1), y[:1].repeat(n), masks=masks)


def test_unitwise_probabilities_of_all_masks_sum_to_one():
    net, x, y = make(policy="unitwise")
    _, out = every_mask(net, x, y)
    for log_prob in (out.log_q, out.log_p):  # the prior takes the policy of its q
        assert log_prob.std() > 0.1
        assert abs(float(log_prob.detach().exp().sum()) - 1) < 1e-5  # 128 terms in float32


def test_unitwise_logits_see_earlier_units_only_and_do_see_them():
    net, x, y = make(policy="unitwise")
    noise = draw_noise(net.sites, len(y), generator(0, "test"))
    masks = masked_pass(net, x, y, noise=noise, source="q").masks
    base = masked_pass(net, x, y, masks=masks).q_logits[0]
    for unit in range(4):
        flipped = [masks[0].clone(), masks[1]]
        flipped[0][:, unit] = 1 - flipped[0][:, unit]
        change = (masked_pass(net, x, y, masks=flipped).q_logits[0] - base).abs()
        assert change[:, : unit + 1].max() < 1e-6  # float32: a running sum against a cumulative one
        assert (change[:, unit + 1 :] > 1e-4).all()


@pytest.mark.parametrize("source", ["q", "test", "train"])
def test_unitwise_draws_follow_its_own_logits(source):
    """Scored afterwards, unit by unit: z = 1[u < σ(logit / T)], with a random layer at 0.5."""
    net, x, y = make(batch=200, policy="unitwise", temperature=3.0, random=0.3)
    noise = draw_noise(net.sites, 200, generator(1, "test"))
    label = None if source == "test" else y
    out = masked_pass(net, x, label, noise=noise, source=source)
    logits = out.p_logits if source == "test" else out.q_logits
    for layer, (z, u, a) in enumerate(zip(out.masks, noise.u, logits, strict=True)):
        keep = torch.sigmoid(a / 3 if source == "train" else a)
        if source == "train":
            keep = torch.where(noise.explore[:, layer : layer + 1] < 0.3, 0.5, keep)
        sure = (u - keep).abs() > 1e-5  # rounding may turn a bit nearer than that
        assert torch.equal(z[sure], (u < keep).float()[sure]) and sure.float().mean() > 0.99


def test_unitwise_mean_pass_is_deterministic_and_closed_form_kl_holds():
    net, x, y = make(policy="unitwise")
    net.eval()
    assert torch.equal(net(x), net(x))
    _, out = every_mask(net, x, y)
    per_mask = sum(kl_bernoulli(q, p) for q, p in zip(out.q_logits, out.p_logits, strict=True))
    exact = (out.log_q.exp() * (out.log_q - out.log_p)).sum()
    torch.testing.assert_close((out.log_q.exp() * per_mask).sum(), exact, rtol=1e-4, atol=1e-5)


def test_sub_trajectory_balance_is_no_matrix_product_that_autocast_rounds():
    gen = torch.Generator().manual_seed(0)
    flows, log_q = 10 * torch.randn(4, 7, generator=gen), -torch.rand(3, 7, generator=gen)
    want = sub_trajectory_balance(flows, log_q, 0.9)
    with torch.autocast("cpu", torch.bfloat16):
        got = sub_trajectory_balance(flows, log_q, 0.9)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
