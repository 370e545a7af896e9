"""Training: exact resume, determinism, early stopping, frozen backbones."""

import copy
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Net, shake, toy_model
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import gfo
from gfo.train import optim
from gfo.train.fit import predictive_nll


def problem(n=96):
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=gen)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def fresh(method="gflowout"):
    torch.manual_seed(0)
    model, sites = toy_model()
    model.flatten = nn.Sequential(
        model.flatten, nn.Dropout(0.2)
    )  # the model's own dropout must resume as well
    return gfo.attach(model, sites, method, torch.randn(2, 6))


HOW = dict(epochs=4, batch=32, seed=3, progress=False, device="cpu")


def weights(net):
    return torch.cat([v.flatten().float().cpu() for v in net.state_dict().values()])


class Killed(Exception):
    pass


def die_at(step, net, data, monkeypatch, **how):
    """A run of `fit` that is killed when it asks for the loss of this training step."""
    calls, loss = iter(range(100)), type(net.method).loss

    def dies(self, run, n):
        if next(calls) == step:
            raise Killed
        return loss(self, run, n)

    with monkeypatch.context() as patch:
        patch.setattr(type(net.method), "loss", dies)
        with pytest.raises(Killed):
            gfo.fit(net, data, data, **how)


@pytest.mark.parametrize("method", ["gflowout", "gflowout-literal", "id-gflowout", "random"])
@pytest.mark.parametrize("step", [0, 4, 10])
def test_killed_at_a_step_and_resumed_ends_with_the_same_weights(
    method, step, tmp_path, monkeypatch
):
    data = problem()
    unbroken = fresh(method)
    want = gfo.fit(unbroken, data, data, **HOW)
    die_at(step, fresh(method), data, monkeypatch, checkpoint=tmp_path / "run.pt", **HOW)
    resumed = fresh(method)
    got = gfo.fit(resumed, data, data, checkpoint=tmp_path / "run.pt", **HOW)
    assert torch.equal(weights(resumed), weights(unbroken))
    pd.testing.assert_frame_equal(got.drop(columns="seconds"), want.drop(columns="seconds"))


def jitter(x, gen):
    return x + 0.1 * torch.randn(x.shape, generator=gen, device=gen.device)


RECIPES = {
    "augment": {"augment": jitter},
    "one-cycle": {"schedule": "one-cycle"},
    "both": {"augment": jitter, "schedule": "one-cycle"},
    "own": {"schedule": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)},
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("step", [4, 10])
def test_resume_is_exact_under_schedules_and_augmentation(name, step, tmp_path, monkeypatch):
    data, how = problem(), HOW | RECIPES[name]
    unbroken, plain = fresh(), fresh()
    gfo.fit(unbroken, data, data, **how)
    gfo.fit(plain, data, data, **HOW)
    assert not torch.equal(weights(unbroken), weights(plain))
    die_at(step, fresh(), data, monkeypatch, checkpoint=tmp_path / "run.pt", **how)
    resumed = fresh()
    gfo.fit(resumed, data, data, checkpoint=tmp_path / "run.pt", **how)
    assert torch.equal(weights(resumed), weights(unbroken))
    if "schedule" in how:  # half of a cycle is no cycle
        with pytest.raises(ValueError, match="holds another run"):
            gfo.fit(fresh(), data, checkpoint=tmp_path / "run.pt", **how | {"epochs": 8})


def test_resume_is_exact_with_a_loader_that_has_a_generator(tmp_path):
    def loader():
        data = torch.utils.data.TensorDataset(*problem())
        own = torch.Generator().manual_seed(5)
        return torch.utils.data.DataLoader(data, batch_size=32, shuffle=True, generator=own)

    unbroken, half = fresh(), fresh()
    how = {k: v for k, v in HOW.items() if k not in ("batch", "epochs")}
    gfo.fit(unbroken, loader(), epochs=4, **how)
    gfo.fit(half, loader(), epochs=2, checkpoint=tmp_path / "run.pt", **how)
    resumed = fresh()
    gfo.fit(resumed, loader(), epochs=4, checkpoint=tmp_path / "run.pt", **how)
    assert torch.equal(weights(resumed), weights(unbroken))
    assert not torch.equal(weights(half), weights(unbroken))


def test_one_cycle_goes_up_and_down_in_every_group_and_ends_near_zero():
    seen, net = {"backbone": [], "masks": [], "log_z": []}, fresh()

    def make(name, params):
        optimizer = torch.optim.SGD(params, lr={"backbone": 0.01}.get(name, 1e-3))
        optimizer.register_step_pre_hook(lambda o, *_: seen[name].append(o.param_groups[0]["lr"]))
        return optimizer

    gfo.fit(net, problem(), optimizer=make, schedule="one-cycle", **HOW | {"epochs": 10})
    for name, peak in (("backbone", 0.01), ("masks", 1e-3), ("log_z", 1e-3)):
        rates = seen[name]
        assert len(rates) == 30 and rates[0] == pytest.approx(peak / 25)
        top = rates.index(max(rates))
        assert 7 <= top <= 10 and rates[top] > 0.9 * peak and rates[-1] < 0.02 * peak
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
    with pytest.raises(ValueError, match="did you mean 'one-cycle'"):
        gfo.fit(net, problem(), schedule="onecycle", **HOW)


def test_same_seed_same_weights_other_seed_others():
    data, ends = problem(), []
    for seed, other in ((0, 100), (0, 101), (1, 100)):
        net = fresh()
        torch.manual_seed(other)  # the caller's own randomness must not matter
        gfo.fit(net, data, **HOW | {"seed": seed})
        ends.append(weights(net))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("shuffles", [False, True])
def test_fit_leaves_the_callers_random_state_alone(shuffles):
    net, data = fresh(), problem()
    if shuffles:
        pairs = torch.utils.data.TensorDataset(*data)
        data = torch.utils.data.DataLoader(pairs, batch_size=32, shuffle=True)
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    gfo.fit(net, data, **HOW)
    assert torch.equal(torch.rand(3), want)


def test_early_stopping_restores_the_best_weights():
    x, y = problem()
    net = fresh("random")
    flipped = (x, (y + 1) % 3)  # the better the fit, the worse this validation set
    history = gfo.fit(
        net, (x, y), flipped, patience=2, lr={"backbone": 0.02}, **HOW | {"epochs": 50}
    )
    best = history["valid_nll"].idxmin()
    assert len(history) == best + 3 < 50
    nll = predictive_nll(net, flipped, 20, HOW["seed"])
    assert nll == pytest.approx(history["valid_nll"][best], abs=1e-6)
    with pytest.raises(ValueError, match="label"):  # not those of other rows
        predictive_nll(net, (x, y[:5]), 20)


def test_frozen_backbone_trains_masks_and_moves_nothing_else():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(24, 3, 6, 6)
    y = torch.arange(24) % 4
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.eval()
    net = gfo.attach(model, ["stem.2", "bn"], "gflowout", x[:2])
    start = weights(net.method)
    gfo.fit(net, (x, y), epochs=2, backbone=False, progress=False)
    assert all(torch.equal(v.cpu(), before[k]) for k, v in model.state_dict().items())
    assert not torch.equal(weights(net.method), start)
    assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_batchnorm_statistics_move_once_a_step():
    torch.manual_seed(0)
    x, y = torch.randn(24, 3, 6, 6), torch.arange(24) % 4
    for method in (gfo.GFlowOut(), gfo.GFlowOut(theta="q"), gfo.GFlowOut(masks=2)):
        net = gfo.attach(Net(), ["stem.2", "bn"], method, x[:2])
        gfo.fit(net, (x, y), epochs=2, batch=8, progress=False)  # the last weights stay
        assert net.model.bn.num_batches_tracked == 6


def test_every_step_draws_its_own_noise_augmentation_and_order(monkeypatch):
    seen, loss = {"noise": [], "augment": [], "order": []}, gfo.GFlowOut.loss

    def watched(self, run, n):
        seen["noise"].append(run.noise().u[0])
        seen["order"].append(run.y)
        return loss(self, run, n)

    def augment(x, gen):
        seen["augment"].append(torch.rand(4, generator=gen))
        return x

    monkeypatch.setattr(gfo.GFlowOut, "loss", watched)
    gfo.fit(fresh(), problem(64), augment=augment, **HOW | {"epochs": 2})
    for draws in seen.values():
        assert len(draws) == 4
        assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_batches_of_one_row_are_taken_if_asked_for_and_left_out_if_left_over():
    def steps(n, batch, **how):
        net = fresh("random")
        rates = []

        def make(name, params):
            optimizer = torch.optim.SGD(params, lr=0.1)
            optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
            return optimizer

        gfo.fit(net, problem(n), optimizer=make, **HOW | {"batch": batch} | how)
        return rates

    assert len(steps(3, 1)) == 12 and len(steps(1, 8)) == 4 and len(steps(33, 32)) == 4
    rates = steps(33, 32, schedule="one-cycle", epochs=10)
    assert len(rates) == 10 and rates[-1] < 0.1 * max(rates)  # the cycle comes down
    with pytest.raises(ValueError, match="batch is 0"):
        steps(3, 0)


def test_a_checkpoint_of_a_run_with_other_settings_is_refused_by_name(tmp_path):
    data, how = problem(), HOW | {"checkpoint": tmp_path / "run.pt"}

    def sgd(name, params):
        return torch.optim.SGD(params, lr=0.01, momentum=0.9)

    gfo.fit(fresh(), data, data, **how | {"epochs": 1})
    for other, entry in (
        ({"valid": None}, "valid"), ({"bf16": True}, "bf16"), ({"optimizer": sgd}, "optimizers"),
        ({"augment": jitter}, "augment"), ({"samples": 3}, "samples"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"another run: {{.*'{entry}'"):
            gfo.fit(fresh(), data, **{"valid": data} | how | other)
    assert len(gfo.fit(fresh(), data, data, **how)) == HOW["epochs"]


def test_numbers_of_numpy_make_files_that_can_be_read(tmp_path):
    torch.manual_seed(0)
    method = gfo.GFlowOut(temperature=np.float64(1.5), hidden=np.int64(8))
    net = gfo.attach(*toy_model(), method, torch.randn(2, 6))
    gfo.save(net, tmp_path / "net.pt")
    assert gfo.load(tmp_path / "net.pt", toy_model()[0]).method.config == net.method.config
    how = HOW | {"seed": np.int64(3), "lr": {"backbone": np.float64(1e-2)}}
    for epochs in (1, 2):
        gfo.fit(net, problem(), checkpoint=tmp_path / "run.pt", **how | {"epochs": epochs})


def test_tensors_and_batches_of_them_agree_on_one_full_batch():
    x, y = problem(32)
    a, b = fresh(), fresh()
    one = gfo.fit(a, (x, y), **HOW | {"batch": 32})
    two = gfo.fit(b, [(x, y)], **HOW)
    # the order of rows differs, and with it which row meets which noise: parts agree loosely
    assert list(one) == list(two) and abs(one["nll"][0] - two["nll"][0]) < 0.2
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    history = gfo.fit(fresh(), loader, loader, **HOW)
    assert len(history) == 4 and history["valid_nll"].notna().all()


@pytest.mark.slow
def test_learning_reduces_every_loss_that_should_fall():
    x, y = problem(512)
    net = fresh()
    history = gfo.fit(net, (x, y), (x, y), **HOW | {"epochs": 60, "patience": 60})
    assert history["valid_nll"].iloc[-1] < history["valid_nll"].iloc[0] - 0.2
    shake(net)  # spoil the masks only, and train them back on the frozen network
    history = gfo.fit(net, (x, y), backbone=False, **HOW | {"epochs": 30})
    for part in ("tb", "prior"):
        assert history[part].iloc[-3:].mean() < 0.5 * history[part].iloc[0]


def test_bf16_follows_float32_through_an_epoch():
    def nll(bf16):
        how = HOW | {"batch": 4, "epochs": 3, "lr": {"backbone": 0.02}}
        return gfo.fit(fresh(), problem(), bf16=bf16, **how)["nll"]

    rough, exact = nll(True), nll(False)
    # bfloat16 keeps 8 bits. Weights cast only once an epoch would be off by 0.03 (measured).
    assert (rough - exact).abs().max() < 2**-8 * exact.max()
    assert (rough != exact).all()


def test_own_optimisers():
    made = []

    def sgd(name, params):
        made.append(name)
        return torch.optim.SGD(params, lr=0.01, momentum=0.9)

    net = fresh()
    history = gfo.fit(net, problem(), optimizer=sgd, **HOW)
    assert made == ["backbone", "masks", "log_z"] and history["nll"].notna().all()


@pytest.mark.parametrize("method", ["gflowout", "contextual", gfo.GFlowOut(sleep=0.5)], ids=str)
def test_a_compiled_loss_trains_as_the_plain_one_does(method, monkeypatch):
    """The same graph of operators, in another order at most: the compiler's own kernels, which
    take a minute to build, are left to torch's tests."""
    made, compiler = [], torch.compile

    def traced(function):
        return compiler(function, backend=lambda graph, inputs: made.append(graph) or graph)

    data, nets = problem(), [fresh(copy.deepcopy(method)), fresh(copy.deepcopy(method))]
    want = gfo.fit(nets[0], data, data, **HOW)
    monkeypatch.setattr(torch, "compile", traced)
    got = gfo.fit(nets[1], data, data, compile=True, **HOW)
    assert made
    torch.testing.assert_close(weights(nets[1]), weights(nets[0]), rtol=1e-5, atol=1e-6)
    columns = [c for c in want if c != "seconds"]
    pd.testing.assert_frame_equal(got[columns], want[columns], rtol=1e-5, atol=1e-6)


GRAPHED = [
    gfo.GFlowOut(theta="q", anneal=2), gfo.GFlowOut(objective="arm"), gfo.VIMCO(masks=3),
    gfo.IDGFlowOut(), gfo.ContextualDropout(),
]  # fmt: skip


@pytest.mark.parametrize("method", GRAPHED, ids=repr)
def test_a_graphed_step_run_uncaptured_gives_the_eager_numbers(method):
    """x, y and noise copied to where they stand, an odd last batch, a schedule: bit for bit."""
    data, nets = problem(), []
    how = HOW | {"batch": 25, "schedule": "one-cycle"}
    assert len(data[0]) % how["batch"]
    histories = []
    for graph in (False, True):
        nets.append(fresh(copy.deepcopy(method)))
        histories.append(gfo.fit(nets[-1], data, data, graph=graph, **how).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    torch.testing.assert_close(weights(nets[1]), weights(nets[0]), rtol=0, atol=0)


def test_what_a_graph_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(optim, "device_of", lambda net: torch.device("cuda"))
    with pytest.raises(ValueError, match="graph=True needs optimizers made with capturable=True"):
        optim.optimizers_of(fresh(), make=lambda _, p: torch.optim.SGD(p, lr=0.1), graph=True)


# -- faults A9: what is not finite


def diverging(name, params):
    return torch.optim.SGD(params, lr={"masks": 1e6}.get(name, 1e-3))


@pytest.mark.parametrize("valid", [True, False])
def test_fit_stops_at_the_first_epoch_that_is_not_finite(valid, tmp_path):
    """faults A9: tb was NaN from epoch 1 and fit returned."""
    data, file = problem(), tmp_path / "run.pt"
    net, how = fresh(), HOW | {"epochs": 30, "checkpoint": file, "optimizer": diverging}
    with pytest.raises(ValueError, match=r"^epoch \d+: (tb|weight \S+) is (nan|inf)") as caught:
        gfo.fit(net, data, data if valid else None, **how)
    message = str(caught.value)
    assert "\n" not in message and "lr=" in message
    stopped_in = int(message.split()[1].strip(":"))
    if stopped_in > 1:  # the last good epoch is on file
        kept = torch.load(file, weights_only=True)
        assert len(kept["progress"]["history"]) == stopped_in - 1
        assert all(v.isfinite().all() for v in kept["state"].values())


class Breaks(gfo.RandomDropout):
    """Loses its senses in the second epoch: in its loss, or in the weights alone."""

    where, calls = "loss", 0

    def loss(self, batch_pass, n):
        found = super().loss(batch_pass, n)
        self.calls += 1
        if self.calls == 5 and self.where == "loss":  # the second step of epoch 2
            return found._replace(parts=found.parts | {"nll": found.parts["nll"] * float("nan")})
        if self.calls == 6 and self.where == "weights":  # in the last step; no loss sees it
            batch_pass.net.model.out.bias.register_hook(lambda grad: grad * float("inf"))
        return found


@pytest.mark.parametrize("where", ["loss", "weights"])
def test_the_epoch_and_the_part_are_named_and_the_best_weights_come_back(where, tmp_path):
    """faults A9."""
    data, good = problem(), fresh("random")
    gfo.fit(good, data, data, **HOW | {"epochs": 1})
    method = Breaks()
    method.where = where
    torch.manual_seed(0)
    model, sites = toy_model()
    model.flatten = nn.Sequential(model.flatten, nn.Dropout(0.2))
    net = gfo.attach(model, sites, method, torch.randn(2, 6))
    part = {"loss": "nll is nan", "weights": "weight model.out.bias is nan"}[where]
    with pytest.raises(ValueError, match=f"^epoch 2: {part}"):
        gfo.fit(net, data, data, checkpoint=tmp_path / "run.pt", **HOW)
    assert torch.equal(weights(net), weights(good))
    kept = torch.load(tmp_path / "run.pt", weights_only=True)
    assert len(kept["progress"]["history"]) == 1


def test_a_validation_loss_that_is_not_finite_is_named(monkeypatch):
    """faults A9."""
    data = problem()
    monkeypatch.setattr("gfo.train.fit.predictive_nll", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="^epoch 1: valid_nll is nan"):
        gfo.fit(fresh(), data, data, **HOW)


# -- faults A10: what the user froze


def image_net(method="gflowout"):
    torch.manual_seed(0)
    x, y = torch.randn(24, 3, 6, 6), torch.arange(24) % 4
    return gfo.attach(Net(), ["stem.2", "bn"], method, x[:2]), x, y


def test_a_frozen_batchnorm_stays_frozen():
    """faults A10: its running mean moved by 0.10."""
    net, x, y = image_net()
    frozen, free = net.model.bn.eval().requires_grad_(False), net.model.stem[1]
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    moved = free.running_mean.clone()
    gfo.fit(net, (x, y), epochs=2, batch=8, progress=False)
    assert all(torch.equal(v.cpu(), before[k]) for k, v in frozen.state_dict().items())
    assert not torch.equal(free.running_mean.cpu(), moved)
    assert not frozen.training and net.model.training and free.training
    assert not any(p.requires_grad for p in frozen.parameters()) and free.weight.requires_grad
    gfo.train.reestimate(net, x)
    assert all(torch.equal(v.cpu(), before[k]) for k, v in frozen.state_dict().items())
    assert frozen.momentum == 0.1


def test_a_model_in_eval_mode_is_trained_whole():
    """A model comes in eval mode from most shops: only a part in eval inside train is frozen."""
    net, x, y = image_net()
    net.eval()
    before = net.model.bn.running_mean.clone()
    gfo.fit(net, (x, y), epochs=1, batch=8, progress=False)
    assert not torch.equal(net.model.bn.running_mean.cpu(), before) and not net.model.training


# -- faults B25, B28: data as they come


class Counting(torch.utils.data.TensorDataset):
    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


def loader(*tensors, **how):
    return torch.utils.data.DataLoader(Counting(*tensors), **{"batch_size": 8} | how)


@pytest.mark.parametrize("schedule", [None, "one-cycle"])
def test_a_last_batch_of_one_row_is_left_out_beside_batchnorm(schedule):
    """faults B25: BatchNorm died at the epoch's end."""
    x, y = problem(25)
    steps = []

    def make(name, params):
        optimizer = torch.optim.SGD(params, lr=0.01)
        if name == "backbone":
            optimizer.register_step_pre_hook(lambda *_: steps.append(name))
        return optimizer

    def run(model, data):
        steps.clear()
        net = gfo.attach(model, ["1"], "random", x[:2])
        gfo.fit(net, data, optimizer=make, schedule=schedule, **HOW | {"epochs": 2})
        return len(steps)

    def normed():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    def plain():
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    parts = list(zip(x.split(8), y.split(8), strict=True))
    assert run(normed(), loader(x, y)) == run(normed(), parts) == 6
    assert run(normed(), loader(x, y, shuffle=True)) == 6
    assert run(plain(), loader(x, y)) == run(plain(), parts) == 8  # none is lost without need
    images = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 3))
    x = x.view(25, 1, 2, 3)
    assert run(images, loader(x, y, batch_size=1)) == 50  # one row each, as asked for


def test_a_dataloader_is_read_once_per_epoch():
    """It was read once more before the first, to be counted."""
    x, y = problem(20)
    for how, rows in (({}, 20), ({"drop_last": True}, 16), ({"shuffle": True}, 20)):
        net, data = fresh("id-gflowout"), loader(x, y, **how)
        gfo.fit(net, data, schedule="one-cycle", **HOW | {"epochs": 3})
        assert data.dataset.read == 3 * rows
        assert net.method.n == 20  # of the training set: other rows are left out each epoch


class Switched(nn.Module):
    """A model with a switch among its inputs, no tensor."""

    def __init__(self):
        super().__init__()
        self.body, self.relu, self.head = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x, on):
        return self.head(self.relu(self.body(x)) * (1.0 if on else 0.1))


def test_a_graphed_step_does_not_replay_what_is_no_tensor():
    """It held the first batch's switch for all batches of its shapes."""
    x, y = problem(32)
    batches = [({"x": x[i : i + 8], "on": i % 16 == 0}, y[i : i + 8]) for i in range(0, 32, 8)]
    found = []
    for graph in (False, True):
        torch.manual_seed(0)
        net = gfo.attach(Switched(), ["relu"], "gflowout", batches[0][0])
        found.append(gfo.fit(net, batches, graph=graph, **HOW).drop(columns="seconds"))
    pd.testing.assert_frame_equal(*found, check_exact=True)


class Endless(torch.utils.data.IterableDataset):
    def __init__(self, x, y):
        self.pairs, self.begun = list(zip(x, y, strict=True)), 0

    def __iter__(self):
        self.begun += 1
        return iter(self.pairs)


def test_a_stream_is_counted_unless_n_says_it():
    x, y = problem(20)
    for how, begun in (({}, 3), ({"n": 1000}, 2)):
        stream = Endless(x, y)
        data = torch.utils.data.DataLoader(stream, batch_size=8)
        net = fresh("id-gflowout")
        gfo.fit(net, data, **HOW | {"epochs": 2} | how)
        assert stream.begun == begun and net.method.n == how.get("n", 20)


KEYED = {
    "labels": lambda x, y: {"x": x, "labels": y},
    "label, bare": lambda x, y: {"image": x, "label": y},
    "arrays": lambda x, y: {"x": x.numpy(), "y": y.numpy()},
    "pair of arrays": lambda x, y: (x.numpy(), y.numpy()),
    "pair of float64": lambda x, y: [x.double(), y],
}


@pytest.mark.parametrize("name", KEYED)
def test_batches_may_be_mappings_and_hold_arrays(name):
    """faults B28."""
    x, y = problem(32)
    parts = list(zip(x.split(8), y.split(8), strict=True))
    one, two = fresh(), fresh()
    want = gfo.fit(one, parts, parts, **HOW)
    keyed = [KEYED[name](*part) for part in parts]
    got = gfo.fit(two, keyed, keyed, **HOW)
    assert torch.equal(weights(one), weights(two))
    pd.testing.assert_frame_equal(got.drop(columns="seconds"), want.drop(columns="seconds"))


def test_inputs_by_name_meet_a_model_that_takes_them_by_name():
    """faults B28: what a tokenizer and a data set of Hugging Face give."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, a, b):
            return self.out(self.read(a + 2 * b))

    x, y = problem(16)
    nets = [gfo.attach(Sum(), ["read"], "random", {"a": x[:2], "b": -x[:2]}) for _ in "ab"]
    nets[1].load_state_dict(nets[0].state_dict())
    pairs = [({"b": -x, "a": x}, y)]
    gfo.fit(nets[0], pairs, **HOW)
    gfo.fit(nets[1], [{"labels": y, "b": -x, "a": x}], **HOW)
    assert torch.equal(weights(nets[0]), weights(nets[1]))
    with pytest.raises(ValueError, match=r"train yields a dict with none of the keys y, label"):
        gfo.fit(nets[0], [{"a": x, "b": x}], **HOW)


@pytest.mark.parametrize("form", ["tensors", "arrays", "float64", "half"])
def test_fit_reads_arrays_and_other_float_formats(form):
    """faults B28 and C: "mat1 and mat2 must have the same dtype"."""
    x, y = problem(32)
    x = x.half().float()
    other = {
        "tensors": (x, y), "arrays": (x.numpy(), y.numpy()),
        "float64": (x.numpy().astype(np.float64), y), "half": [x.half(), y.numpy()],
    }[form]  # fmt: skip
    one, two = fresh(), fresh()
    gfo.fit(one, (x, y), (x, y), **HOW)
    gfo.fit(two, other, other, **HOW)
    assert torch.equal(weights(one), weights(two))


@pytest.mark.parametrize("which", ["train", "valid"])
def test_bad_batches_of_a_loader_are_named(which, tmp_path):
    x, y = problem(16)
    bad = {"labels": (x, y + 5), "NaN": (x / 0, y), "shape": (x[:, :5], y)}
    for data in bad.values():
        sets = {"train": loader(x, y), "valid": loader(x, y), which: loader(*data)}
        with pytest.raises(ValueError, match="labels run|NaN or inf|x has shape"):
            gfo.fit(fresh(), checkpoint=tmp_path / "run.pt", **sets, **HOW)
        assert not (tmp_path / "run.pt").exists()  # before an epoch is lost
    for empty in (loader(x[:0], y[:0]), []):
        with pytest.raises(ValueError, match=f"{which} is empty"):
            gfo.fit(fresh(), **{"train": loader(x, y), "valid": loader(x, y), which: empty}, **HOW)


def test_a_training_set_that_runs_dry_is_named():
    class Once:
        def __init__(self, parts):
            self.left = iter(parts)

        def __iter__(self):
            return (part for part in self.left)

    with pytest.raises(ValueError, match="epoch 1: train yields no batch"):
        gfo.fit(fresh(), Once([problem(8), problem(8)]), **HOW)


# -- faults C: settings that were taken without a word

SETTINGS = {
    "seed": ({"seed": 1.9}, "seed is 1.9, needs to be at least 0, a whole number"),
    "negative seed": ({"seed": -1}, "seed is -1"),
    "epochs": ({"epochs": -1}, "epochs is -1, needs to be at least 0, a whole number"),
    "epochs text": ({"epochs": "3"}, "epochs is '3'"),
    "backbone": ({"backbone": "no"}, "backbone is 'no', needs to be True or False"),
    "n": ({"n": 0}, "n is 0"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_none_are_refused(name):
    """faults C."""
    how, message = SETTINGS[name]
    net, before = fresh(), weights(fresh())
    with pytest.raises(ValueError, match=message):
        gfo.fit(net, problem(8), **HOW | how)
    assert torch.equal(weights(net), before)


def test_faults_c_batch_takes_numbers_of_numpy_and_flags_are_true_or_false():
    torch.manual_seed(0)
    x, y = torch.randn(10, 6), torch.arange(10) % 3
    net = gfo.attach(*toy_model(), "random", x)
    how = dict(epochs=1, progress=False, device="cpu")
    assert len(gfo.fit(net, (x, y), batch=np.int32(4), **how)) == 1
    for flag in ("bf16", "compile"):
        with pytest.raises(ValueError, match=f"{flag} is 'no', needs to be True or False"):
            gfo.fit(net, (x, y), **{flag: "no"}, **how)


def test_faults_a9_batchnorm_is_not_reestimated_from_nan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    net = gfo.attach(model, ["2"], "random", torch.randn(8, 6))
    with torch.no_grad():
        model[0].weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"the network answers NaN: its 'model\.0\.weight'"):
        gfo.train.reestimate(net, torch.randn(8, 6))
    assert model[1].running_mean.isfinite().all() and model[1].momentum == 0.1
    with pytest.raises(ValueError, match="batch is 2.5, needs to be"):
        gfo.train.reestimate(net, torch.randn(8, 6), batch=2.5)


# --- a callback per epoch


def test_on_epoch_hears_each_row_and_changes_no_run():
    data, heard = problem(), []

    def log(row):
        heard.append(dict(row))
        torch.rand(7)  # what a logger draws is not the run's
        np.random.rand(7)
        row.clear()

    plain, logged = fresh(), fresh()
    want = gfo.fit(plain, data, data, **HOW)
    found = gfo.fit(logged, data, data, on_epoch=log, **HOW)
    pd.testing.assert_frame_equal(pd.DataFrame(heard), found)
    same = [name for name in want if name != "seconds"]
    pd.testing.assert_frame_equal(found[same], want[same])
    assert torch.equal(weights(logged), weights(plain))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_an_exception_in_on_epoch_loses_no_finished_epoch(at, tmp_path):
    data, file, heard = problem(), tmp_path / "run.pt", []
    plain = fresh()
    want = gfo.fit(plain, data, data, **HOW)

    def stop(row):
        heard.append(row["epoch"])
        if row["epoch"] == at:
            raise Killed

    stopped = fresh()
    with pytest.raises(Killed):
        gfo.fit(stopped, data, data, checkpoint=file, on_epoch=stop, **HOW)
    shorter = fresh()
    gfo.fit(shorter, data, data, **HOW | {"epochs": at})
    assert torch.equal(weights(stopped), weights(shorter))  # the best ones came back
    resumed = fresh()
    found = gfo.fit(resumed, data, data, checkpoint=file, on_epoch=stop, **HOW)
    assert heard == [1, 2, 3, 4]  # each once
    assert found["tb"].tolist() == want["tb"].tolist()
    assert torch.equal(weights(resumed), weights(plain))


@pytest.mark.parametrize("name", ["optimizer", "schedule", "augment", "on_epoch"])
def test_what_is_no_function_is_named_before_any_step(name):
    net = fresh()
    before = weights(net)
    value = 3 if name == "schedule" else "adam"
    with pytest.raises(ValueError, match=f"{name}={value!r} cannot be called: pass a function"):
        gfo.fit(net, problem(), **HOW | {name: value})
    assert torch.equal(weights(net), before)


@pytest.mark.parametrize("make", [torch.optim.SGD, partial(torch.optim.SGD, lr=0.1), lambda p: p])
def test_an_optimizer_that_takes_no_group_is_named_before_any_step(make):
    net = fresh()
    before = weights(net)
    with pytest.raises(ValueError, match=r"optimizer is .*, not f\(group, parameters\)") as error:
        gfo.fit(net, problem(), optimizer=make, **HOW)
    assert "\n" not in str(error.value) and torch.equal(weights(net), before)


def test_a_caller_without_gradients_gets_the_same_training():
    first, second = fresh(), fresh()
    gfo.fit(first, problem(), **HOW)
    with torch.no_grad():
        gfo.fit(second, problem(), **HOW)
        assert not torch.is_grad_enabled()
    assert torch.equal(weights(first), weights(second))


def test_a_buffer_that_is_infinite_by_design_stops_no_training():
    """As of a causal mask; only what training moves can diverge."""
    net, data = fresh("random"), problem()
    net.model.register_buffer("causal", torch.full((3, 3), -torch.inf).triu(1))
    assert len(gfo.fit(net, data, **HOW)) == HOW["epochs"]
    with torch.no_grad():
        net.model.causal[0, 0] = torch.nan
        next(net.model.parameters())[0, 0] = torch.inf
    with pytest.raises(ValueError, match="load its last good weights") as caught:
        gfo.predict(net, data[0])
    assert "causal" not in str(caught.value)


def test_rates_are_finite_and_not_negative():
    for rate in (-0.05, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rates are finite, from 0 on"):
            gfo.fit(fresh("random"), problem(), lr={"backbone": rate}, **HOW)


def test_what_the_likelihood_learns_is_trained_beside_a_frozen_backbone():
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = x[:, :1] + 0.1 * torch.randn(256, 1)
    model = nn.Sequential(nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 1))
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[2].weight)
    model[0].weight.data[0, 0] = model[2].weight.data[0, 0] = 1.0
    for bias in (model[0].bias, model[2].bias):
        nn.init.zeros_(bias)
    net = gfo.attach(
        model, ["1"], "deterministic", x[:2], likelihood=gfo.Gaussian(sd="learned")
    )  # the mean is right: what is left is the noise
    how = dict(lr={"backbone": 0.05}, progress=False, device="cpu", seed=0)
    gfo.fit(net, (x, y), backbone=False, epochs=40, batch=32, **how)
    assert model[0].weight[0, 0] == 1
    left = (y - x[:, :1]).square().mean().sqrt()
    assert float(net.likelihood.log_sd.detach().exp()) == pytest.approx(float(left), rel=0.1)


def test_tensors_whose_batches_are_copies_are_not_copied_again_to_be_augmented(monkeypatch):
    made, clone, (x, y) = [], torch.clone, problem(64)
    kept = x.clone()
    monkeypatch.setattr(torch, "clone", lambda t: made.append(t) or clone(t))
    counts = []
    for data in ((x, y), [(x[:32], y[:32]), (x[32:], y[32:])]):
        for augment in (None, lambda x, gen: x.add_(1)):
            made.clear()
            gfo.fit(fresh("random"), data, augment=augment, **HOW | {"epochs": 1})
            counts.append(len(made))
    assert counts[1] == counts[0] and counts[3] == counts[2] + 2
    assert torch.equal(x, kept)
