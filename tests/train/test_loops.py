"""Loops of one's own: `net.loss`, `net.param_groups`, and the page *Your own loop*."""

import inspect
import warnings

import nbformat
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import Net, shake, toy_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gfo
from book.tools import toc
from gfo.core.masked_pass import BatchPass
from gfo.core.registry import METHODS
from gfo.methods import create

N = 48
GEN = torch.Generator().manual_seed(3)
X, Y = torch.randn(16, 6, generator=GEN), torch.arange(16) % 3
VARIANTS = {name: {} for name in METHODS} | {
    "gflowout, 3 masks": {"masks": 3},
    "gflowout, vargrad": {"objective": "vargrad", "masks": 2},
    "gflowout, theta": {"theta": "q"},
}


def attached(name="gflowout"):
    torch.manual_seed(0)
    model, sites = toy_model()
    method = create(name.split(",")[0], **VARIANTS[name])
    return shake(gfo.attach(model, sites, method, X[:2])).train()


def gradient(net, *losses):
    """Of the mean of these losses, accumulated."""
    net.zero_grad()
    for loss in losses:
        (loss.total / len(losses)).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


# -- net.loss


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_is_the_methods_own_on_the_noise_of_seed_and_step(name):
    net = attached(name)
    want = net.method.loss(BatchPass(net, X, Y, (7, "step", 2, 5)), N)
    got = net.loss(X, Y, n=N, seed=7, step=(2, 5))
    assert got.parts.keys() == want.parts.keys()
    assert all(torch.equal(got.parts[k], want.parts[k]) for k in want.parts)
    assert torch.equal(got.total, sum(want.parts.values()))


def test_noise_comes_from_seed_and_step_or_from_torch_as_the_caller_likes():
    net = attached()

    def total(**how):
        return net.loss(X, Y, n=N, **how).total.item()

    assert total(step=1) == total(seed=0, step=1)
    assert len({total(seed=s, step=t) for s in (0, 1) for t in (0, 1, (1, 0))}) == 6
    torch.manual_seed(4)
    one, two = total(), total()
    torch.manual_seed(4)
    assert (total(), total()) == (one, two) and one != two
    own = [torch.Generator().manual_seed(4) for _ in "ab"]
    before = torch.get_rng_state()
    assert total(generator=own[0]) == total(generator=own[1]) == one
    total(step=3)
    assert torch.equal(torch.get_rng_state(), before)  # neither touches the global generator
    with pytest.raises(ValueError, match="seed=3 without step"):
        total(seed=3)
    with pytest.raises(ValueError, match="give one of them"):
        total(step=3, generator=own[0])
    with pytest.raises(ValueError, match="seed is -1"):
        total(seed=-1, step=3)
    for step in (0.5, -1, (2, 0.5), "3"):  # which int() would round
        with pytest.raises(ValueError, match="step is .*: steps are whole numbers from 0 on"):
            total(step=step)


BAD = {
    "no rows": ((X[:0], Y[:0]), {}, "empty batch"),
    "NaN": ((X / 0 * 0, Y), {}, "NaN or inf"),
    "label": ((X, Y + 1), {}, r"labels run 1…3"),
    "n": ((X, Y), {"n": 0}, "n is 0"),
    "shard": ((X, Y), {"shard": (2, 2)}, "rank < world"),
    "strings": ((np.array([["a"] * 6] * 16), Y), {}, "array (of|holds) <U1"),
}


@pytest.mark.parametrize("name", BAD)
def test_loss_refuses_in_one_line(name):
    batch, how, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        attached().loss(*batch, **{"n": N, "step": 0} | how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_floats_of_another_format_and_arrays_are_read_as_the_models_own(dtype):
    """faults C, dtype of x: "mat1 and mat2 must have the same dtype" before."""
    net, x = attached(), X.half().float()
    want = net.loss(x, Y, n=N, step=0).total
    got = net.loss(x.numpy().astype(dtype), Y.numpy(), n=N, step=0).total
    assert torch.equal(got, want)
    assert torch.equal(net.loss(x.to(getattr(torch, dtype)), Y, n=N, step=0).total, want)


# -- a bare call


def test_a_bare_call_with_gradients_in_training_warns_once():
    """faults A2."""
    net = attached()
    with pytest.warns(UserWarning, match=r"net\.loss\(x, y, n=…\)") as said:
        F.cross_entropy(net(X), Y).backward()
    assert said[0].filename == __file__
    net(X)  # a second warning would be an error here
    for quiet in (attached("deterministic"), attached().eval()):  # the usual loop is right; no loop
        quiet(X)
    with torch.no_grad():
        attached()(X)


# -- net.param_groups


def test_param_groups_hold_every_parameter_once_with_its_rate():
    net = attached()
    groups = net.param_groups(lr={"masks": 0.5})
    assert {g["name"]: g["lr"] for g in groups} == {"backbone": 1e-3, "masks": 0.5, "log_z": 1e-2}
    flat = [p for g in groups for p in g["params"]]
    assert len(flat) == len({*flat}) == len([*net.parameters()])
    assert groups[0]["params"] == [*net.model.parameters()]
    for make in (torch.optim.AdamW, torch.optim.SGD):
        assert [g["lr"] for g in make(groups).param_groups] == [1e-3, 0.5, 1e-2]
    assert [g["name"] for g in net.param_groups(backbone=False)] == ["masks", "log_z"]


def test_param_groups_refuse_what_is_no_choice():
    with pytest.raises(ValueError, match="lr is 0.1, needs a rate by group"):
        attached().param_groups(0.1)
    with pytest.raises(ValueError, match="backbone is 'no'"):
        attached().param_groups(backbone="no")
    with pytest.raises(ValueError, match="nothing to train"):
        attached("random").param_groups(backbone=False)


# -- accumulation, clipping, autocast


@pytest.mark.parametrize("name", VARIANTS)
def test_accumulated_shards_have_the_gradient_of_the_whole_batch(name):
    net, how = attached(name), dict(n=N, step=3)
    whole = gradient(net, net.loss(X, Y, **how))
    parts = enumerate(zip(X.chunk(2), Y.chunk(2), strict=True))
    halves = [net.loss(*half, shard=(k, 2), **how) for k, half in parts]
    torch.testing.assert_close(gradient(net, *halves), whole, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_the_step():
    net = attached()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    net.loss(X, Y, n=N, step=0).total.backward()
    assert nn.utils.clip_grad_norm_(net.parameters(), 0.01) > 0.1
    optimizer.step()
    moved = nn.utils.parameters_to_vector(net.parameters()).detach() - before
    assert moved.norm() == pytest.approx(0.01, rel=1e-3)


def test_autocast_computes_the_backbone_in_bfloat16_and_the_masks_in_float32():
    net, seen = attached(), []
    net.model.fc2.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    exact = net.loss(X, Y, n=N, step=0)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net.loss(X, Y, n=N, step=0)
    assert seen == [torch.float32, torch.bfloat16]
    assert rough.total.dtype == torch.float32 and rough.total != exact.total
    for part, value in exact.parts.items():  # bfloat16 keeps 8 bits; two layers and a square
        torch.testing.assert_close(rough.parts[part], value, rtol=2**-5, atol=2**-5)
    rough.total.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in net.parameters())


# -- two processes


class LossOf(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, y, **how):
        return self.net.loss(x, y, n=N, **how)


def one_of_two(rank, folder):
    """The gradients that this process has after one step, through DDP's forward and past it."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    net = attached()
    wrapped = DistributedDataParallel(LossOf(net))
    x, y = X.chunk(2)[rank], Y.chunk(2)[rank]
    how = dict(step=3, shard=(rank, 2))
    found = [gradient(net, call(x, y, **how)) for call in (wrapped, wrapped.module)]
    torch.save(found, f"{folder}/{rank}")
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_only_through_the_forward_of_ddp(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    net = attached()
    whole = gradient(net, net.loss(X, Y, n=N, step=3))
    (one, alone), (two, alone_too) = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(one, two)
    # where the synchronisation is missing, each has the gradient of its half
    assert not torch.allclose(alone, whole, rtol=1e-1, atol=1e-3)
    assert not torch.allclose(alone, alone_too, rtol=1e-1, atol=1e-3)


# -- the page


@pytest.fixture(scope="module")
def page():
    """What the page's cells tagged "loop" define, and the run by `gfo.fit`."""
    found = {}
    cells = nbformat.read(toc.ROOT / "book" / "your_own_loop.ipynb", as_version=4).cells
    for cell in cells:
        if "loop" in cell.metadata.get("tags", []):
            exec(cell.source, found)
            assert len(cell.source.splitlines()) < 25
    net, parts = found["by_fit"]()
    return found | {"want": torch.tensor(parts.to_numpy()), "net": net}


def agrees(page, loop):
    """72 steps of float32 on the same noise, whose sums may run in another order."""
    net, parts = page[loop]()
    assert page["want"].shape == (3, 3) and page["want"][-1, 0] < page["want"][0, 0] - 0.5
    found = torch.tensor(parts.to_numpy())
    torch.testing.assert_close(found, page["want"], rtol=1e-3, atol=1e-4)
    probs = [gfo.predict(each, page["x"][:100]) for each in (net, page["net"])]
    torch.testing.assert_close(*probs, rtol=1e-2, atol=1e-3)


def test_the_plain_loop_of_the_page_has_the_losses_of_fit(page):
    agrees(page, "plain")


def test_two_processes_of_the_page_have_the_losses_of_fit(page):
    agrees(page, "by_ddp")


def test_lightning_of_the_page_has_the_losses_of_fit(page):
    pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own
        agrees(page, "by_lightning")


def test_fit_takes_the_same_steps_as_net_loss(monkeypatch):
    """Key and groups: what a loop of one's own has to repeat, batch by batch."""
    seen, batches = [], [(X[:8], Y[:8]), (X[8:], Y[8:])]
    loss = gfo.GFlowOut.loss

    def watched(self, batch_pass, n):
        out = loss(self, batch_pass, n)
        seen.append((batch_pass.key, out.total.item()))
        return out

    net, frozen = attached(), attached()
    want = [frozen.loss(*b, n=16, seed=5, step=(0, k)).total.item() for k, b in enumerate(batches)]
    monkeypatch.setattr(gfo.GFlowOut, "loss", watched)
    still = {"backbone": 0.0, "masks": 0.0, "log_z": 0.0}
    gfo.fit(net, batches, epochs=1, seed=5, lr=still, progress=False, device="cpu")
    assert seen == [((5, "step", 0, k), value) for k, value in enumerate(want)]


def test_the_models_own_modes_are_the_callers(tmp_path):
    """`net.loss` flips no mode: BatchNorm moves in train mode, and not in eval mode."""
    x, y = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
    net = gfo.attach(Net(), ["stem.2", "bn"], "gflowout", x[:2])
    for train in (False, True):
        net.train(train)
        before = net.model.bn.running_mean.clone()
        net.loss(x, y, n=8, step=0)
        assert torch.equal(net.model.bn.running_mean, before) != train
        assert net.model.bn.training == train


def test_signature_says_what_is_documented():
    named = inspect.signature(gfo.Attached.loss).parameters
    doc = inspect.getdoc(gfo.Attached.loss)
    assert all(f"{name}:" in doc for name in named if name != "self")


def test_q_that_would_read_real_targets_unstandardised_warns():
    model, sites = toy_model(classes=2)
    net = gfo.attach(model, sites, gfo.GFlowOut(), X[:2], likelihood=gfo.Gaussian())
    y = 1000 * torch.randn(len(X), 1)
    with pytest.warns(UserWarning, match="unstandardised: call net.likelihood.standardise"):
        net.loss(X, y, n=len(X))
    net.likelihood.standardise([y])
    net.loss(X, y, n=len(X))  # a warning would be an error
    model, sites = toy_model(classes=2)
    plain = gfo.attach(model, sites, "random", X[:2], likelihood=gfo.Gaussian())
    plain.loss(X, y, n=len(X))  # nothing here reads y
    learned = gfo.Gaussian(sd="learned")
    model, sites = toy_model(classes=1)
    with pytest.warns(UserWarning, match="y is read as it is"):  # its sd starts at that of y
        gfo.attach(model, sites, "random", X[:2], likelihood=learned).loss(X, y, n=len(X))
