"""Drawn weights: SWAG against its iterates, a last-layer posterior against closed forms."""

import copy
import math
import warnings

import pytest
import torch
from conftest import Net, member_seeds, toy_model
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

import gfo
from gfo.train.weights import Swag, with_weights

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def plain(units=(4, 3), method="deterministic"):
    torch.manual_seed(0)
    model, sites = toy_model(units)
    return gfo.attach(model, sites, method, X[:2])


def iterates(net, count=7, mean=0.0, seed=0):
    """Weights (count, P) of a random walk, as a trainer would leave them."""
    size = len(parameters_to_vector(net.parameters()))
    gen = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, size, generator=gen).cumsum(0)


def collected(net, walk, rank=20):
    swag = Swag(net, rank)
    for weights in walk:
        vector_to_parameters(weights, net.parameters())
        swag.collect({"epoch": 1})  # as a callback
    return swag


def other(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others warn of while they are imported
        return pytest.importorskip(name)


# SWAG


@pytest.mark.parametrize(("rank", "mean"), [(20, 0.0), (4, 0.0), (4, 1000.0)])
def test_swag_is_the_moments_of_its_iterates(rank, mean):
    net = plain()
    walk = iterates(net, mean=mean)
    swag, exact = collected(net, walk, rank), walk.double()
    # float32 of numbers near `mean`: 1e-7 of them is lost in each of seven steps
    error = dict(rtol=0, atol=1e-5 * max(1.0, mean / 100))
    torch.testing.assert_close(swag.mean.double(), exact.mean(0), **error)
    variance = (swag.squares / swag.count).double()
    torch.testing.assert_close(variance, exact.var(0, correction=0), rtol=1e-3, atol=1e-4)
    running = torch.stack([row - exact[: k + 1].mean(0) for k, row in enumerate(exact)])
    torch.testing.assert_close(torch.stack(swag.deviations).double(), running[-rank:], **error)


def test_swag_reads_weights_in_whatever_order_they_lie():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    images = torch.randn(5, 3, 6, 6)
    net = gfo.attach(model, ["1"], "deterministic", images)
    before, lies = net(images).detach(), parameters_to_vector(net.parameters()).detach()
    net.to(memory_format=torch.channels_last)
    swag = collected(net, [])
    for _ in range(2):  # it stands still
        swag.collect()
    assert torch.equal(swag.mean, lies)
    drawn = with_weights(net, swag.draw())
    torch.testing.assert_close(drawn(images), before)
    assert drawn.model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_drawn_weights_keep_each_its_number_format():
    net = plain(method="gflowout")
    net.model.bfloat16()
    flat = torch.cat([p.detach().float().flatten() for p in net.parameters()])
    drawn = with_weights(net, flat)
    before, after = net.state_dict(), drawn.state_dict()
    assert {v.dtype for v in after.values()} >= {torch.bfloat16, torch.float32}
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in after.items())


def test_draws_of_swag_have_its_mean_and_covariance():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    net, n = gfo.attach(model, ["1"], "deterministic", torch.randn(2, 2)), 20_000
    walk = iterates(net, 6)
    swag, exact = collected(net, walk, 4), walk.double()
    columns = torch.stack([row - exact[: k + 1].mean(0) for k, row in enumerate(exact)])[-4:]
    want = exact.var(0, correction=0).diag() / 2 + columns.T @ columns / (2 * (4 - 1))
    draws = torch.stack([swag.draw(5, k) for k in range(n)]).double()
    spread = want.diagonal()
    assert ((draws.mean(0) - exact.mean(0)).abs() < 5 * (spread / n).sqrt()).all()
    # of normals: var of an estimated covariance is (c_ii c_jj + c_ij²) / n; 78 entries
    error = ((spread[:, None] * spread + want.square()) / n).sqrt()
    assert ((draws.T.cov() - want).abs() < 5 * error).all()
    assert (
        (want - want.diagonal().diag()).abs() / error
    ).max() > 50  # the rank part would be missed
    assert torch.equal(swag.draw(5, 2), swag.draw(5, 2))
    assert not torch.equal(swag.draw(5, 2), swag.draw(5, 3))


def test_swag_answers_as_an_ensemble_and_takes_batchnorm_anew():
    torch.manual_seed(0)
    images = torch.randn(24, 3, 6, 6)
    net = gfo.attach(Net(), ["stem.2", "bn"], gfo.RandomDropout(keep=0.8), images)
    start = parameters_to_vector(net.parameters()).detach()
    swag = collected(net, start + 0.02 * iterates(net, 4))
    before = copy.deepcopy(net.state_dict())
    found = swag.ensemble(images, samples=3, seed=4, batch=12)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # the net stays
    for k, member in enumerate(found.nets):
        twin = copy.deepcopy(net)
        vector_to_parameters(swag.draw(4, k), twin.parameters())
        gfo.train.reestimate(twin, images, batch=12, seed=4)
        assert all(torch.equal(v, member.state_dict()[n]) for n, v in twin.state_dict().items())
        assert not torch.equal(member.model.bn.running_mean, net.model.bn.running_mean)
    pairs = zip(found.nets, member_seeds(3), strict=True)
    own = [gfo.predict(member, images, 2, seed=seed) for member, seed in pairs]
    want = torch.stack(own).mean(0)
    torch.testing.assert_close(gfo.predict(found, images, 6), want, rtol=0, atol=1e-6)
    assert gfo.sample_logits(found, images, 6).shape == (6, 24, 4)


def test_swag_says_in_one_line_what_is_missing():
    net = plain()
    one = collected(net, iterates(net, 1))
    for call, message in (
        (lambda: Swag(net).draw(), r"0 deviation\(s\), SWAG needs 2"),
        (lambda: one.ensemble(X), r"1 deviation\(s\), SWAG needs 2: call collect\(\)"),
        (lambda: collected(net, iterates(net)).ensemble(X, samples=0), "at least one net"),
        (
            lambda: with_weights(net, torch.zeros(3), "model.out"),
            "3 weights for a part that has 12",
        ),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_torch_uncertaintys_swag_has_the_same_moments():
    theirs = other("torch_uncertainty.methods.swag").SWAG
    net = plain()
    walk = iterates(net)
    swag, peer = collected(net, walk, 4), theirs(net.model, 0, 1, max_num_models=4)
    for epoch, weights in enumerate(walk, 1):
        vector_to_parameters(weights, net.model.parameters())
        peer.update_wrapper(epoch)
    kept = [f"{peer.prfx}{name}" for name, _ in net.model.named_parameters()]
    mean = torch.cat([peer.swag_stats[f"{name}_mean"].flatten() for name in kept])
    squares = torch.cat([peer.swag_stats[f"{name}_sq_mean"].flatten() for name in kept])
    columns = torch.cat([peer.swag_stats[f"{name}_covariance_sqrt"] for name in kept], 1)
    near = dict(rtol=0, atol=1e-4)  # theirs subtracts squares in float32
    torch.testing.assert_close(swag.mean, mean, **near)
    torch.testing.assert_close(swag.squares / swag.count, squares - mean**2, **near)
    torch.testing.assert_close(torch.stack(swag.deviations), columns, **near)


# The last layer


def last_layer(net):
    """Features with a 1 for the bias (N, D + 1), and the posterior precision of (W, b) by hand:
    Σ (diag p − p pᵀ) ⊗ φφᵀ + I, classes first as the layer's weight has them."""
    h = net.model[:-1](X)
    phi, p = torch.cat([h, torch.ones(len(h), 1)], 1), net.model(X).softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    full = torch.einsum("nkl,nd,ne->kdle", curvature, phi, phi)
    size = p.shape[1] * phi.shape[1]
    return phi.detach(), (full.reshape(size, size) + torch.eye(size)).detach()


def as_torch_has_it(classes, features):
    """Where the entries of `last_layer` are in (weight, bias) as one vector."""
    grid = torch.arange(classes * (features + 1)).view(classes, features + 1)
    return torch.cat([grid[:, :-1].flatten(), grid[:, -1]])


def trained():
    net = plain((5, 4))
    gfo.fit(net, (X, Y), epochs=20, batch=16, lr={"backbone": 0.02}, progress=False, device="cpu")
    return net.eval()


def test_the_precision_by_hand_is_autograds_hessian():
    net = trained()
    phi, precision = last_layer(net)
    weight, bias = net.model.out.weight, net.model.out.bias
    joint = torch.cat([weight, bias[:, None]], 1).detach()

    def loss(w):
        return nn.functional.cross_entropy(phi @ w.T, Y, reduction="sum") + w.square().sum() / 2

    hessian = torch.autograd.functional.hessian(loss, joint).reshape(len(precision), -1)
    torch.testing.assert_close(precision, hessian, rtol=1e-4, atol=1e-4)  # 64 float32 terms


def test_drawn_last_layers_predict_by_closed_form_and_share_the_rest():
    net = trained()
    phi, precision = last_layer(net)
    order = as_torch_has_it(3, 4)
    start = parameters_to_vector(net.model.out.parameters()).detach()
    gen = torch.Generator().manual_seed(3)
    spread = torch.linalg.cholesky(precision[order][:, order].inverse())
    draws = start + torch.randn(8, len(start), generator=gen) @ spread.T
    found = gfo.Ensemble([with_weights(net, w, "model.out") for w in draws])
    matrices = torch.cat([draws[:, :12].view(8, 3, 4), draws[:, 12:, None]], 2)
    want = torch.einsum("skd,nd->snk", matrices, phi)
    torch.testing.assert_close(gfo.sample_logits(found, X, 8), want, rtol=0, atol=1e-4)
    torch.testing.assert_close(gfo.predict(found, X, 8), want.softmax(2).mean(0))
    for member in found.nets:
        assert member.model.fc1.weight is net.model.fc1.weight
        assert member.model.out.weight is not net.model.out.weight
    assert torch.equal(parameters_to_vector(net.model.out.parameters()), start)


@pytest.mark.filterwarnings("ignore")  # theirs
def test_laplace_torch_has_that_precision_and_predicts_through_the_ensemble():
    laplace = other("laplace")
    net = trained()
    fitted = laplace.Laplace(net, "classification", "last_layer", "full", prior_precision=1.0)
    fitted.fit(DataLoader(TensorDataset(X, Y), 16))
    order = as_torch_has_it(3, 4)
    want = last_layer(net)[1][order][:, order]
    torch.testing.assert_close(fitted.posterior_precision, want, rtol=1e-4, atol=1e-4)
    theirs = fitted.predictive_samples(
        X, pred_type="nn", n_samples=20, generator=torch.Generator().manual_seed(2)
    )  # (S, B, K)
    drawn = fitted.sample(20, torch.Generator().manual_seed(2))
    found = gfo.Ensemble([with_weights(net, w, "model.out") for w in drawn])
    ours = gfo.sample_logits(found, X, 20).softmax(2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(gfo.predict(found, X, 20), theirs.mean(0), rtol=0, atol=1e-5)


def test_random_dropout_inverted_is_torchs_dropout():
    """Pointwise under given masks: test_attach_faults.py. Here its law, and its expectation."""
    torch.manual_seed(0)
    n, keep = 20_000, 0.8
    model = nn.Sequential(nn.Linear(6, 3), nn.Identity(), nn.Linear(3, 2, bias=False))
    net = gfo.attach(model, ["1"], gfo.RandomDropout(keep=keep, inverted=True), X[:2]).eval()
    theirs = nn.Dropout(1 - keep).train()(torch.ones(n, 3))
    (mask,) = gfo.sample(net, X[:1].expand(n, -1), seed=1)
    ours = net.method.scale(mask)
    code = torch.tensor([4, 2, 1])
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist())  # 0 and 1 / keep
    bits = torch.arange(8)[:, None].bitwise_and(code) > 0
    law = torch.where(bits, keep, 1 - keep).prod(1)
    score = gfo.score(net, X[:1].expand(8, -1), Y[:1].expand(8), [bits.float()])
    torch.testing.assert_close(score.log_p.exp(), law)
    for drawn in (ours, theirs):
        seen = torch.bincount((drawn > 0).long() @ code, minlength=8) / n
        assert ((seen - law).abs() < 5 * (law * (1 - law) / n).sqrt()).all()
    # what reaches a linear layer has the expectation that eval mode has, by enumeration
    outs = [gfo.masked_pass(net, X, masks=[b.float().expand(64, -1)]).logits for b in bits]
    mean = torch.einsum("m,mbk->bk", law, torch.stack(outs))
    torch.testing.assert_close(mean, net(X).detach(), rtol=0, atol=1e-5)
    assert math.isclose(float(law.sum()), 1, abs_tol=1e-6)


@pytest.mark.parametrize("rank", [0, 1, -1, 2.5])
def test_a_rank_that_leaves_no_covariance_is_refused_before_training(rank):
    with pytest.raises(ValueError, match="rank is .* at least 2"):
        Swag(plain(), rank)
