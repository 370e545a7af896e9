"""Threads that share a network take turns, and answer as one thread does (faults A1)."""

import copy
import io
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import Net, shake, toy_model

import gfo


def mlp():
    torch.manual_seed(0)
    return shake(gfo.attach(*toy_model(), "gflowout", torch.randn(2, 6))), torch.randn(4, 3, 6)


def conv():
    torch.manual_seed(0)
    net = gfo.attach(Net(), ["stem.2", "bn"], "gflowout", torch.randn(2, 3, 6, 6))
    return shake(net), torch.randn(4, 3, 3, 6, 6)


@pytest.fixture(autouse=True)
def switching_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


CALLS = {
    "predict": lambda net, x: gfo.predict(net, x, 4),
    "net(x)": lambda net, x: net(x).detach(),
    "sample": lambda net, x: torch.cat(gfo.sample(net, x, seed=1), 1),
}


@pytest.mark.parametrize("make", [mlp, conv])
@pytest.mark.parametrize("call", CALLS)
def test_four_threads_of_a_hundred_calls_answer_as_one(make, call):
    net, xs = make()
    net.eval()
    want = [CALLS[call](net, x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: CALLS[call](net, xs[i % 4]), range(400)))
    assert all(torch.equal(answer, want[i % 4]) for i, answer in enumerate(got))


def test_predictions_in_train_mode_leave_the_modes_and_the_buffers():
    net, xs = conv()
    net.train()
    before = copy.deepcopy(net.state_dict())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: gfo.predict(net, xs[i % 4], 4), range(80)))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_model_itself_runs_without_masks_beside_a_prediction():
    net, xs = conv()
    net.eval()
    with torch.no_grad():
        want = net.model(xs[0])
        with ThreadPoolExecutor(2) as pool:
            busy = pool.submit(lambda: [gfo.predict(net, xs[1], 4) for _ in range(60)])
            while not busy.done():
                assert torch.equal(net.model(xs[0]), want)
    assert len(busy.result()) == 60


def test_fit_beside_predictions_ends_as_it_does_alone():
    x, y = (
        torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(1)),
        torch.arange(24) % 4,
    )
    how = dict(epochs=6, batch=8, samples=2, progress=False, device="cpu")
    alone, beside = conv()[0], conv()[0]
    want = gfo.fit(alone, (x, y), (x, y), **how)
    stop, answers = threading.Event(), []

    def predict():
        while not stop.is_set():
            answers.append(gfo.predict(beside, x[:2], 2))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(predict)
        try:
            got = gfo.fit(beside, (x, y), (x, y), **how)
        finally:
            stop.set()
        other.result()  # raises what it raised
    assert answers
    assert got.drop(columns="seconds").equals(want.drop(columns="seconds"))
    ends = zip(alone.state_dict().values(), beside.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in ends)


def test_a_copy_has_a_lock_of_its_own_and_an_exclusive_block_keeps_others_out():
    net, xs = mlp()
    held = io.BytesIO()
    torch.save(net, held)
    held.seek(0)
    copies = (
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(held, weights_only=False),
    )
    want = gfo.predict(net, xs[0])
    with ThreadPoolExecutor(1) as pool, net.exclusive():
        for other in copies:
            assert torch.equal(pool.submit(gfo.predict, other, xs[0]).result(60), want)
        waiting = pool.submit(gfo.predict, net, xs[0])
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        with net.exclusive():  # nested
            assert torch.equal(gfo.predict(net, xs[0]), want)


class Headed(torch.nn.Module):
    def __init__(self, body, classes):
        super().__init__()
        self.body, self.act = body, torch.nn.ReLU()
        self.head = torch.nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.act(self.body(x)))


def two_headed():
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))
    x = torch.randn(16, 6)
    nets = [gfo.attach(Headed(body, k), ["act"], "gflowout", x).train() for k in (2, 3)]
    return nets, body, x


@pytest.mark.parametrize("copied", [False, True])
def test_two_networks_that_share_a_backbone_take_turns_too(copied):
    """faults A1: KeyError 'forward', and the backbone's BatchNorm left in eval mode."""
    nets, body, x = two_headed()
    if copied:
        body = (nets := copy.deepcopy(nets))[0].model.body
        assert nets[1].model.body is body
    want, before = [gfo.predict(net, x, 4) for net in nets], copy.deepcopy(body.state_dict())
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: gfo.predict(nets[i % 2], x, 4), range(200)))
    assert all(torch.equal(answer, want[i % 2]) for i, answer in enumerate(got))
    assert all(module.training for net in nets for module in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


def test_a_call_that_is_refused_holds_no_lock_of_networks_that_share_one():
    nets, _, x = two_headed()
    for net in nets:
        gfo.predict(net, x, 2)
    assert len(nets[1].hub.locks) == 2
    with pytest.raises(ValueError, match="masks given"):
        gfo.sample_logits(nets[1], x, masks=[])
    with ThreadPoolExecutor(1) as pool:
        for lock in nets[1].hub.locks:
            assert pool.submit(lock.acquire, blocking=False).result()


def test_attach_and_detach_wait_for_a_network_on_the_same_backbone():
    body, x, came = torch.nn.Linear(6, 8), torch.randn(4, 6), []
    one, two = (torch.nn.Sequential(body, torch.nn.ReLU(), torch.nn.Linear(8, 3)) for _ in "ab")
    net = gfo.attach(one, ["1"], "random", x)

    def come():
        came.append(gfo.attach(two, ["1"], "random", x))

    for call in (come, lambda: gfo.detach(two), come, lambda: came[-1].detach()):
        thread, before = threading.Thread(target=call), len(came)
        with net.exclusive():
            thread.start()
            thread.join(0.5)
            assert thread.is_alive() and len(came) == before
        thread.join(60)
        assert not thread.is_alive()
    assert len(came) == 2
