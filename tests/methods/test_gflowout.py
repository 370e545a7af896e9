"""GFlowOut's arguments beyond the paper: what q and p read, the pull on p, annealing."""

import pytest
import torch
import torch.distributions as td
from conftest import all_masks, shake, toy_model

import gfo
from gfo.core.masked_pass import BatchPass, masked_pass


def make(batch=8, **config):
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(batch, 6), torch.arange(batch) % 3
    return shake(gfo.attach(model, sites, gfo.GFlowOut(**config), x)), x, y


def test_new_arguments_are_part_of_an_identity_only_where_they_are_used():
    used = dict(tied=True, pull=0.5, anneal=3, e_steps=2, sleep=0.5)
    assert not set(used) & set(gfo.GFlowOut().config)
    assert used.items() <= gfo.GFlowOut(**used).config.items()


def test_a_blind_policy_has_one_distribution_and_a_tied_one_rate_per_layer():
    how = dict(activation="none", earlier=False, label=False)
    for tied in (False, True):
        net, x, y = make(**how, tied=tied)
        out = masked_pass(net, x, y, masks=[torch.ones(8, 4), torch.zeros(8, 3)])
        for a in (*out.q_logits, *out.p_logits):
            assert (a == a[:1]).all()  # whatever x and y are
            assert (len(a.unique()) == 1) == tied
        assert len({a[0, 0].item() for a in (*out.q_logits, *out.p_logits)}) == 4


@pytest.mark.parametrize("reads", [{}, dict(activation="none", earlier=False, label=False)])
def test_a_tied_policy_is_a_distribution_and_draws_bits_of_their_own(reads):
    net, x, y = make(tied=True, **reads)
    masks = all_masks([4, 3])
    n = len(masks[0])
    out = masked_pass(net, x[:1].repeat(n, 1), y[:1].repeat(n), masks=masks)
    for log_prob in (out.log_q, out.log_p):
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-5)
    first = gfo.sample(net, x[:1].repeat(4000, 1), y[:1].repeat(4000), seed=0)[0]
    keep = out.q_logits[0][0, 0].sigmoid().item()
    error = (keep * (1 - keep) / 4000) ** 0.5
    assert (first.mean(0) - keep).abs().max() < 4 * error  # each bit by that rate
    # and not together: 4 independent bits have this variance of their sum
    assert first.sum(1).var() == pytest.approx(4 * keep * (1 - keep), rel=0.1)


def test_the_ladder_trains_saves_and_loads_on_every_rung(tmp_path):
    for rung in (
        dict(activation="none", earlier=False, label=False, tied=True),
        dict(activation="none", earlier=False, label=False),
        dict(earlier=False, label=False),
    ):
        net, x, y = make(objective="vargrad", masks=4, temperature=1.0, random=0.0, **rung)
        before = [p.clone() for p in net.method.q.parameters()]
        gfo.fit(net, (x, y), epochs=2, device="cpu", progress=False)
        moved = [
            not torch.equal(a, b) for a, b in zip(before, net.method.q.parameters(), strict=True)
        ]
        assert any(moved)
        gfo.save(net, tmp_path / "net.pt")
        again = gfo.load(tmp_path / "net.pt", toy_model()[0])
        assert torch.equal(gfo.predict(net, x), gfo.predict(again, x))


def test_the_pull_is_the_kl_from_the_start_and_moves_p_alone():
    net, x, y = make(pull=0.7, keep=0.8)
    run = BatchPass(net, x, y, (0, "test"))
    out, loss = run(source="train"), net.method.loss(run, len(y))
    start = td.Bernoulli(torch.tensor(0.8))
    kl = sum(td.kl_divergence(td.Bernoulli(logits=a), start).sum(1) for a in out.p_logits)
    torch.testing.assert_close(loss.parts["pull"], 0.7 * kl.mean())
    assert set(loss.parts) == {"nll", "tb", "prior", "pull"}
    loss.parts["pull"].backward()
    assert any(p.grad.any() for p in net.method.p.parameters())
    others = (*net.model.parameters(), *net.method.q.parameters())
    assert all(p.grad is None or not p.grad.any() for p in others)


def test_a_hard_pull_keeps_the_prior_where_it_started():
    """What KL(q ‖ p) + λ KL(p ‖ p₀) is at its least for, bit by bit: p = q at λ = 0, p₀ at ∞."""
    torch.manual_seed(0)
    moved = {}
    for pull in (0.0, 1.0, 1000.0):
        net, x, y = make(pull=pull, temperature=1.0, random=0.0)
        for _ in range(2):
            gfo.fit(net, (x, y), epochs=150, lr={"masks": 0.01}, device="cpu", progress=False)
        moved[pull] = sum(gfo.evaluate.masks.policy_divergences(net, x, y)["p_moved"])
    assert moved[0.0] > moved[1.0] > moved[1000.0] and moved[1000.0] < 1e-3


def test_annealing_ends_on_policy_by_a_line_in_epochs():
    net, x, y = make(temperature=3.0, random=0.4, anneal=4)
    steps = []
    for _ in range(10):  # half an epoch each
        steps.append([float(v) for v in net.method.exploration()])
        net.loss(x, y, n=16)
    want = [(1 + 2 * left, 0.4 * left) for left in (max(0, 1 - k / 8) for k in range(10))]
    assert torch.allclose(torch.tensor(steps), torch.tensor(want))
    # from then on masks are those of q itself, from the same noise
    run = BatchPass(net, x, y, (0, "test"))
    trained, own = run(source="train"), run(source="q")
    assert all(torch.equal(a, b) for a, b in zip(trained.masks, own.masks, strict=True))
    net.eval()
    seen = float(net.method.seen)
    net.loss(x, y, n=16)
    assert float(net.method.seen) == seen  # looking is no training
    plain, _, _ = make(temperature=3.0, random=0.4)
    assert plain.method.exploration() == (3.0, 0.4)


def test_an_annealed_run_goes_on_as_if_unbroken(tmp_path):
    how = dict(batch=4, device="cpu", progress=False)
    whole, x, y = make(anneal=3)
    gfo.fit(whole, (x, y), epochs=4, **how)
    for epochs in (2, 4):
        net, _, _ = make(anneal=3)
        gfo.fit(net, (x, y), epochs=epochs, checkpoint=tmp_path / "run.pt", **how)
    assert float(net.method.seen) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


@pytest.mark.parametrize("per_epoch", [1, 2, 3, 5])
def test_one_step_in_e_steps_moves_the_backbone_however_short_an_epoch(per_epoch):
    net, x, y = make(e_steps=4)
    steps = [(epoch, step) for epoch in range(20) for step in range(per_epoch)]
    m_steps = ["nll" in net.loss(x, y, n=8, seed=0, step=step).parts for step in steps]
    assert sum(m_steps) == len(steps) // 4


def test_between_m_steps_backbone_and_prior_stand_still():
    net, x, y = make(e_steps=3, sleep=0.5, pull=0.1)
    for step in range(4):
        net.zero_grad(set_to_none=True)
        found = net.loss(x, y, n=8, seed=0, step=(3, step))
        found.total.backward()
        moved = {
            name: all(p.grad is not None for p in part.parameters())
            for name, part in (("model", net.model), ("q", net.method.q), ("p", net.method.p))
        }
        assert moved == dict(model=step % 3 == 0, q=True, p=step % 3 == 0)
        assert {*found.parts, *found.info} == {"nll", "tb", "prior", "pull", "sleep", "log_z"}
    with pytest.raises(ValueError, match="graph=True: gflowout's steps differ by number, e_steps"):
        gfo.fit(net, (x, y), epochs=1, graph=True, progress=False)


def test_the_sleep_phase_teaches_q_the_posterior_of_what_the_model_dreams():
    """At its optimum q(z | x, y) is the model's own posterior p(z) p(y | x, z) / p(y | x), for
    every y that the model may say; a fixed prior and a frozen model here, all masks enumerated."""
    torch.manual_seed(0)
    model, sites = toy_model((2, 1))
    x = torch.randn(1, 6)
    with torch.no_grad():
        model.get_submodule(
            "out" if hasattr(model, "out") else list(model._modules)[-1]
        ).weight.mul_(8)
    method = gfo.GFlowOut(prior=0.5, policy="unitwise", sleep=1.0, beta=0.0)
    net = gfo.attach(model, sites, method, x)
    masks = all_masks([2, 1])
    want = [
        gfo.score(net, x.repeat(8, 1), torch.full((8,), k), masks).log_lik.softmax(0)
        for k in range(3)
    ]
    optimizer = torch.optim.Adam(net.method.q.parameters(), lr=0.02)
    rows, y = x.repeat(256, 1), torch.zeros(256, dtype=torch.long)
    for step in range(300):
        batch_pass = BatchPass(net, rows, y, (0, "sleep", step))
        loss = net.method.sleep_part(batch_pass).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for k in range(3):
        q = gfo.score(net, x.repeat(8, 1), torch.full((8,), k), masks).log_q.exp()
        assert (q - want[k]).abs().sum() / 2 < 0.05  # Adam at a constant rate hovers near it
    assert (want[0] - want[1]).abs().sum() / 2 > 0.1  # which the y tells apart


def test_recommended_is_on_policy_and_takes_changes():
    four, one = gfo.GFlowOut.recommended(), gfo.GFlowOut.recommended(1, hidden=8)
    assert (four.objective, four.masks, four.exploration()) == ("vargrad", 4, (1.0, 0.0))
    assert (one.objective, one.masks, one.exploration(), one.hidden) == ("tb", 1, (1.0, 0.0), 8)
    with pytest.raises(ValueError, match="masks is 1, objective 'reverse-kl' needs at least 2"):
        gfo.GFlowOut.recommended(1, objective="reverse-kl")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(sleep=-1.0), "sleep is -1.0, needs to be at least 0"),
        (dict(pull=-1.0), "pull is -1.0, needs to be at least 0"),
        (dict(pull=0.1, prior=0.5), "pull is 0.1, but the prior is fixed"),
        (dict(tied=True, policy="unitwise"), "tied needs bits that know nothing of each other"),
        (dict(objective="arm", policy="unitwise"), "objective 'arm' needs bits"),
        (dict(objective="arm", masks=2), "masks is 2, objective 'arm' takes one"),
        (dict(anneal=-1), "anneal is -1, needs to be at least 0, a whole number"),
        (dict(activation="nothing"), "activation is 'nothing', not one of 'same before none'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message):
        gfo.GFlowOut(**config)


@pytest.mark.parametrize(("name", "hint"), [("x", "known: arm, reverse-kl"), ("amr", "'arm'")])
def test_an_unknown_objective_is_told_all_there_are(name, hint):
    with pytest.raises(ValueError, match=f"unknown objective '{name}'; .*{hint}"):
        gfo.GFlowOut(objective=name)
