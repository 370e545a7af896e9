"""The primitive, against enumeration and brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import all_masks, shake, toy_model
from torch import nn

import gfo
from gfo.core.batch import Tokens
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import draw_noise, generator
from gfo.core.objectives import kl_bernoulli, log_bernoulli, trajectory_balance


def every_mask(net, x, y):
    """Score of every mask for one example (1, d), (1,)."""
    masks = all_masks([site.width for site in net.sites])
    count = len(masks[0])
    return gfo.score(net, x.repeat(count, 1), y.repeat(count), masks)


@pytest.mark.parametrize("method", ["gflowout", "gflowout-literal", "id-gflowout"])
def test_probabilities_of_all_masks_sum_to_one(method):
    torch.manual_seed(0)
    model, sites = toy_model(units=(5, 5))
    x, y = torch.randn(1, 6), torch.tensor([1])
    net = shake(gfo.attach(model, sites, method, x))
    score = every_mask(net, x, y)
    for log_prob in (score.log_q, score.log_p):
        assert log_prob.std() > 0.01 or method == "id-gflowout"  # p of ID is uniform
        # 1,024 float32 terms, each off by about 1e-7 relative
        assert abs(float(log_prob.exp().sum()) - 1) < 1e-5


def test_log_probabilities_against_brute_force(toy):
    """Write the network, q, p and the log-probabilities out by hand."""
    net, x, y = toy
    masks = gfo.sample(net, x, y, seed=1)
    m, onehot = net.model, F.one_hot(y, 3).float()
    log_q, log_p, h, earlier = 0, 0, x, []
    for layer, fc in enumerate((m.fc1, m.fc2)):
        h = torch.relu(fc(h))
        for name, parts in (("q", [h, *earlier, onehot]), ("p", [h, *earlier])):
            prob = torch.sigmoid(getattr(net.method, name).nets[layer](torch.cat(parts, 1)))
            bits = torch.where(masks[layer] == 1, prob, 1 - prob).log().sum(1)
            log_q, log_p = (log_q + bits, log_p) if name == "q" else (log_q, log_p + bits)
        h = h * masks[layer]
        earlier.append(masks[layer])
    log_lik = torch.log_softmax(m.out(h), 1).gather(1, y[:, None]).squeeze(1)
    score = gfo.score(net, x, y, masks)
    for mine, theirs in zip(
        (log_q, log_p, log_lik), (score.log_q, score.log_p, score.log_lik), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # float32, sums of 7 terms


def test_sampled_frequencies_match_scored_probabilities(toy):
    """20,000 draws for one input against the exact probabilities of all 128 masks."""
    net, x, y = toy
    n = 20_000
    for label in (y[:1], None):
        draws = gfo.sample(
            net, x[:1].repeat(n, 1), None if label is None else label.repeat(n), seed=3
        )
        weights = 2 ** torch.arange(6, -1, -1)
        seen = torch.bincount((torch.cat(draws, 1).long() * weights).sum(1), minlength=128)
        score = every_mask(net, x[:1], y[:1])
        exact = (score.log_p if label is None else score.log_q).exp()
        # Pearson's statistic, cells under 5 expected counts pooled: mean df, sd √(2 df)
        big = exact * n >= 5
        expected = torch.cat([exact[big], exact[~big].sum()[None]]) * n
        counts = torch.cat([seen[big], seen[~big].sum()[None]])
        df = int(big.sum())
        chi2 = float(((counts - expected) ** 2 / expected.clamp_min(1e-9)).sum())
        assert df > 20 and chi2 < df + 5 * math.sqrt(2 * df)


def test_trajectory_balance_is_zero_at_the_exact_posterior_and_only_there(toy):
    net, x, y = toy
    score = every_mask(net, x[:1], y[:1])
    log_reward = score.log_lik + score.log_p
    log_z = torch.logsumexp(log_reward, 0)
    posterior = log_reward - log_z
    assert (
        trajectory_balance(log_z, posterior, log_reward).max() < 1e-9
    )  # float32 rounding, squared
    assert trajectory_balance(log_z, score.log_q, log_reward).max() > 1e-2


def test_layerwise_kl_in_closed_form_is_kl_for_prefixes_from_q_only(toy):
    """Σ_l E_{prefix~q} KL(q_l‖p_l) = KL(q‖p); under tempered prefixes it is another number."""
    net, x, y = toy
    masks = all_masks([s.width for s in net.sites])
    count = len(masks[0])
    out = gfo.masked_pass(net, x[:1].repeat(count, 1), y[:1].repeat(count), masks=masks)
    log_q = out.log_q
    per_mask = sum(kl_bernoulli(q, p) for q, p in zip(out.q_logits, out.p_logits, strict=True))
    exact = (log_q.exp() * (log_q - out.log_p)).sum().detach()
    torch.testing.assert_close((log_q.exp() * per_mask).sum(), exact, rtol=1e-4, atol=1e-5)
    tempered = sum(log_bernoulli(q / 2, z) for q, z in zip(out.q_logits, masks, strict=True))
    assert ((tempered.exp() * per_mask).sum().detach() - exact).abs() > 1e-3


def test_kl_bernoulli_against_its_sum():
    a, b = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 3.0]])
    p, q = torch.sigmoid(b).double(), torch.sigmoid(a).double()
    want = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(1)
    torch.testing.assert_close(kl_bernoulli(a, b).double(), want, rtol=1e-6, atol=1e-6)
    assert kl_bernoulli(torch.tensor([[200.0]]), torch.tensor([[-200.0]])).item() == pytest.approx(
        200
    )


class Padded(nn.Module):
    """Tokens with padding at the first site, feature maps at the second, features at the third."""

    def __init__(self):
        super().__init__()
        self.read, self.site = nn.Linear(3, 4), Tokens()
        self.conv, self.out = nn.Conv1d(4, 5, 1), nn.Linear(5, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        h = self.site(torch.relu(self.read(x)), (x != 0).any(-1))
        return self.last(torch.relu(self.out(torch.relu(self.conv(h.mT)).mean(-1))))


@pytest.mark.parametrize("prior", ["kl", "literal", 0.7])
@pytest.mark.parametrize("policy", ["layerwise", "unitwise"])
def test_gradients_in_closed_form_are_those_of_autograd(policy, prior):
    """Of all weights, at a site with tokens and padding, one of channels and one of features; the
    tolerance is the rounding of float32 over some hundred terms."""
    torch.manual_seed(0)
    x, y = torch.randn(7, 4, 3), torch.arange(7) % 3
    x[2:4, 2:] = 0  # padding
    config = {"prior": prior} if prior == 0.7 else {"prior_objective": prior}
    method = gfo.GFlowOut(policy=policy, masks=2, **config)
    net = shake(gfo.attach(Padded(), ["site", "conv", "out"], method, x, axes={"conv": "BCL"}))
    batch_pass, weights = BatchPass(net, x, y, (0, "step")), list(net.parameters())

    def gradients(out):
        residual = out.log_z + out.log_q - (out.log_lik + out.log_p).detach()
        loss = residual.square().mean() - out.log_lik.mean()
        if prior != 0.7:
            loss = loss + net.method.prior_part(out).mean()
        return loss, torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)

    (plain, want), (closed, got) = (
        gradients(out) for out in (batch_pass(repeat=2), batch_pass(repeat=2).scored())
    )
    torch.testing.assert_close(closed, plain, rtol=1e-6, atol=0)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    torch.testing.assert_close(net.method.loss(batch_pass, 7).total, closed, rtol=1e-6, atol=0)


def test_training_policy_is_tempered_with_random_masks(toy):
    """Marginal keep-probability of the first layer: 0.9 σ(logit/2) + 0.1 / 2; log q at T = 1."""
    net, x, y = toy
    n = 40_000
    x, y = x[:1].repeat(n, 1), y[:1].repeat(n)
    noise = draw_noise(net.sites, n, generator(0, "test"))
    out = gfo.masked_pass(net, x, y, noise=noise, source="train")
    want = 0.9 * torch.sigmoid(out.q_logits[0][0] / 2) + 0.05
    spread = (want * (1 - want) / n).sqrt()
    assert ((out.masks[0].mean(0) - want).abs() < 4.5 * spread).all()
    again = gfo.score(net, x, y, out.masks)
    torch.testing.assert_close(out.log_q, again.log_q)
    # a random mask takes a whole layer of an example: with explore < 0.1 the bits are u < 0.5
    chosen = noise.explore[:, 1] < 0.1
    assert torch.equal(out.masks[1][chosen], (noise.u[1][chosen] < 0.5).float())


def test_mask_rule_is_u_below_sigmoid_over_temperature():
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(5, 6), torch.zeros(5, dtype=torch.long)
    net = shake(gfo.attach(model, sites, gfo.GFlowOut(temperature=3.0, random=0.0), x))
    noise = draw_noise(net.sites, 5, generator(1))
    for source, temperature in (("train", 3.0), ("q", 1.0)):
        out = gfo.masked_pass(net, x, y, noise=noise, source=source)
        for z, u, logit in zip(out.masks, noise.u, out.q_logits, strict=True):
            assert torch.equal(z, (u < torch.sigmoid(logit / temperature)).float())


def gradients(net, loss):
    net.zero_grad()
    loss.backward(retain_graph=True)
    groups = {
        "backbone": net.model,
        "q": net.method.q,
        "p": net.method.p,
        "log_z": net.method.log_z,
    }
    return {
        name: any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())
        for name, part in groups.items()
    }


@pytest.mark.parametrize("theta", ["q~", "q"])
@pytest.mark.parametrize("objective", ["kl", "literal"])
def test_each_loss_part_moves_its_own_group_only(objective, theta):
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(16, 6), torch.arange(16) % 3
    method = gfo.GFlowOut(prior_objective=objective, theta=theta)
    net = shake(gfo.attach(model, sites, method, x))

    parts = net.method.loss(BatchPass(net, x, y, (0,)), 16).parts
    none = dict.fromkeys(("backbone", "q", "p", "log_z"), False)
    assert gradients(net, parts["nll"]) == none | {"backbone": True}
    assert gradients(net, parts["tb"]) == none | {"q": True, "log_z": True}
    assert gradients(net, parts["prior"]) == none | {"p": True}


def test_id_loss_is_eq_11_and_its_floor():
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y, n = torch.randn(16, 6), torch.arange(16) % 3, 1000
    net = shake(gfo.attach(model, sites, gfo.IDGFlowOut(), x))
    run = BatchPass(net, x, y, (0,))
    out = run()
    assert all(len(z) == 1 for z in out.masks)  # one mask serves the batch
    loss = net.method.loss(run, n)
    log_reward = n * out.log_lik.mean() - 7 * math.log(2)
    residual = n * net.method.log_z.per_example + out.log_q - log_reward
    torch.testing.assert_close(loss.parts["tb"], residual.square().mean() / n)
    # the variance of n times the mean of 16 of n examples
    want = n**2 * out.log_lik.detach().var() / 16 * (1 - 16 / n)
    torch.testing.assert_close(loss.info["tb_floor"], want)
    assert net.method.loss(run, 16).info["tb_floor"] == 0  # the batch is the data set


def test_id_gflowout_shares_masks_over_inputs_chunks_and_blocks():
    torch.manual_seed(0)
    model, sites = toy_model()
    x = torch.randn(600, 6)  # three blocks of 256
    net = shake(gfo.attach(model, sites, gfo.IDGFlowOut(), x[:2]))
    alone = torch.cat([gfo.predict(net, part) for part in x.split(1)])
    torch.testing.assert_close(gfo.predict(net, x), alone, rtol=0, atol=1e-6)
    masks = gfo.sample(net, x)
    assert all((z == z[:1]).all() for z in masks)


def test_fixed_prior_and_rescaling():
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.long)
    net = gfo.attach(model, sites, gfo.RandomDropout(keep=0.8, rescale=True), x)
    masks = [torch.tensor([[1.0, 0, 1, 0]]).repeat(4, 1), torch.zeros(4, 3)]
    score = gfo.score(net, x, y, masks)
    want = 2 * math.log(0.8) + 5 * math.log(0.2)
    torch.testing.assert_close(score.log_p, torch.full((4,), want), rtol=1e-5, atol=1e-5)
    assert score.log_q is None and score.log_z is None
    scaled = net.method.scale(masks[0])
    torch.testing.assert_close(scaled, masks[0] * 2)
    assert torch.equal(net.method.scale(masks[1]), masks[1])  # an empty layer stays empty
