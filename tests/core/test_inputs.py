"""Every bad input gets one line that names cause and cure, before any work."""

import numpy as np
import pytest
import torch
from conftest import toy_model
from gfo_lab.profiles import budget

import gfo


@pytest.fixture
def net():
    torch.manual_seed(0)
    return gfo.attach(*toy_model(), "gflowout", torch.randn(2, 6))


X, Y = torch.zeros(4, 6), torch.tensor([0, 1, 2, 0])
ONES = [torch.ones(4, 4), torch.ones(4, 3)]


def bad(value):
    x = X.clone()
    x[1, 2] = value
    return x


CASES = {
    "wrong width": (lambda n: gfo.predict(n, torch.zeros(4, 5)), "the example had (B, *(6,))"),
    "wrong dimensions": (lambda n: gfo.predict(n, torch.zeros(6)), "x has shape (6,)"),
    "not one tensor": (lambda n: gfo.predict(n, (X, X)), "x has 2 tensors, the example had 1"),
    "nan": (lambda n: gfo.predict(n, bad(float("nan"))), "NaN or inf"),
    "inf": (lambda n: gfo.score(n, bad(float("inf")), Y, ONES), "NaN or inf"),
    "empty": (lambda n: gfo.predict(n, X[:0]), "empty batch"),
    "sparse": (lambda n: gfo.predict(n, X.to_sparse()), "x is sparse or nested: pass x.to_dense"),
    "label too large": (lambda n: gfo.score(n, X, Y + 1, ONES), "labels run 1…3"),
    "label negative": (lambda n: gfo.sample(n, X, Y - 1), "labels run -1…1"),
    "label int32": (lambda n: gfo.score(n, X, Y.int(), ONES), "use y.long()"),
    "label list": (lambda n: gfo.score(n, X, Y.tolist(), ONES), "y is a list"),
    "no masks": (lambda n: gfo.predict(n, X, masks=[]), "0 masks given"),
    "batch": (lambda n: gfo.fit(n, (X, Y), batch=0, progress=False), "batch is 0"),
    "one row": (lambda n: gfo.train.reestimate(n, X, batch=1), "BatchNorm needs two rows"),
    "statistics of parts": (lambda n: gfo.train.reestimate(n, (X,)), "x is a tuple"),
    "complex": (lambda n: gfo.predict(n, X + 0j), "x is complex: pass torch.view_as_real"),
    "complex example": (
        lambda n: gfo.attach(*toy_model(), "random", X + 0j),
        "example is complex: pass torch.view_as_real",
    ),
    "x of lists": (lambda n: gfo.predict(n, X.tolist()), "x has a list and no tensor"),
    "x of words": (lambda n: gfo.predict(n, np.full((4, 6), "1")), "an array holds <U1"),
    "x of integers": (lambda n: gfo.predict(n, X.byte()), "x is of uint8, which the model does"),
    "samples of words": (
        lambda n: gfo.predict(n, X, "20"),
        "samples is '20', needs to be at least 1",
    ),
    "seed of a half": (lambda n: gfo.predict(n, X, seed=1.5), "seed is 1.5"),
    "memory of a word": (lambda n: gfo.predict(n, X, memory="1G"), "memory is '1G'"),
    "masks of a word": (lambda n: gfo.predict(n, X, masks="all"), "masks='all' is none of"),
    "loader without rows": (lambda n: gfo.predict(n, iter([])), "the loader yields no batch"),
    "loader without labels": (lambda n: gfo.score(n, iter([X]), None, ONES), "score needs labels"),
    "loader and y": (lambda n: gfo.score(n, iter([(X, Y)]), Y, ONES), "pass y=None"),
    "loader and too many masks": (
        lambda n: gfo.score(n, iter([(X[:3], Y[:3])]), None, ONES),
        "the loader yields 3",
    ),
    "given masks and a loader": (lambda n: gfo.predict(n, iter([X]), masks=ONES), "for one batch"),
    "no source": (lambda n: gfo.masked_pass(n, X, source="tset"), "source 'tset' is not one of"),
    "no noise": (lambda n: gfo.masked_pass(n, X, source="test"), "draws masks: pass noise"),
    "source without masks": (lambda n: gfo.masked_pass(n, X, source="given"), "needs masks"),
    "example of numpy": (
        lambda n: gfo.attach(*toy_model(), "random", X.numpy()),
        "a ndarray without a tensor",
    ),
    "lr number": (lambda n: gfo.fit(n, (X, Y), lr=0.1), "lr={'backbone': 0.1}"),
    "batches of three": (lambda n: gfo.fit(n, [(X, Y, Y)], progress=False), "a tuple of 3"),
    "batches of x": (lambda n: gfo.fit(n, [X], progress=False), "train yields a Tensor"),
    "seed": (lambda n: gfo.predict(n, X, seed=-3), "seed is -3"),
    "label float": (lambda n: gfo.score(n, X, Y.float(), ONES), "needs integer labels"),
    "label count": (lambda n: gfo.score(n, X, Y[:3], ONES), "needs (4,)"),
    "samples": (lambda n: gfo.predict(n, X, samples=0), "samples is 0"),
    "mask count": (lambda n: gfo.score(n, X, Y, ONES[:1]), "1 masks given"),
    "mask width": (lambda n: gfo.score(n, X, Y, [ONES[0], ONES[0]]), "'relu2' has shape (4, 4)"),
    "mask values": (lambda n: gfo.score(n, X, Y, [ONES[0] / 2, ONES[1]]), "other than 0 and 1"),
    "fit labels": (lambda n: gfo.fit(n, (X, Y + 5), progress=False), "labels run"),
    "fit valid": (lambda n: gfo.fit(n, (X, Y), (bad(float("nan")), Y), progress=False), "NaN"),
    "fit tuple": (lambda n: gfo.fit(n, (X, Y, Y), progress=False), "tuple of 3"),
    "one-shot": (lambda n: gfo.fit(n, iter([(X, Y)]), progress=False), "read only once"),
    "no batch": (lambda n: gfo.fit(n, [], progress=False), "train is empty"),
    "lr group": (lambda n: gfo.fit(n, (X, Y), lr={"mask": 1.0}), "lr names ['mask']"),
    "no cuda": (lambda n: gfo.fit(n, (X, Y), device="cuda"), "torch sees no CUDA"),
    "not a net": (lambda n: gfo.predict(n.model, X), "need a net from gfo.attach"),
    "keep 0": (lambda n: gfo.RandomDropout(keep=0.0), "strictly between 0 and 1"),
    "keep 1": (lambda n: gfo.IDGFlowOut(keep=1.0), "strictly between 0 and 1"),
    "start": (lambda n: gfo.IDGFlowOut(start="keep"), "unknown start 'keep'; known: half, prior"),
    "prior 1": (lambda n: gfo.GFlowOut(prior=1.0), "prior is 1.0"),
    "temperature": (lambda n: gfo.GFlowOut(temperature=0.0), "temperature is 0.0"),
    "random": (lambda n: gfo.GFlowOut(random=1.5), "random is 1.5"),
    "reading": (
        lambda n: gfo.GFlowOut(prior_objective="mle"),
        "prior_objective is 'mle', not one of",
    ),
    "method": (lambda n: gfo.attach(*toy_model(), "gflowot", X), "did you mean 'gflowout'?"),
    "data": (lambda n: gfo.data.load("mnst"), "did you mean 'mnist'?"),
    "profile": (lambda n: budget("quik"), "did you mean 'quick'?"),
    "model": (lambda n: gfo.models.build("mpl"), "did you mean 'mlp'?"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_in_one_line(name, net):
    if name == "no cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    call, message = CASES[name]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError) as error:
        call(net)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_checkpoint_of_another_architecture_or_a_damaged_file_is_refused(net, tmp_path):
    path = tmp_path / "net.pt"
    gfo.save(net, path)
    for model, message in (
        (toy_model(units=(4, 5))[0], "another architecture"),
        (toy_model(units=(4,))[0], "has a site 'relu2', which this model lacks"),
        (gfo.attach(*toy_model(), "random", X), "holds another method"),
        (gfo.attach(*toy_model(), gfo.GFlowOut(beta=0.5), X), "holds another config"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            gfo.load(path, model)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="save one first"):
        gfo.load(tmp_path / "nothing.pt", toy_model()[0])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged or no gfo file"):
        gfo.load(path, toy_model()[0])


def test_a_checkpoint_of_another_run_is_refused(net, tmp_path):
    how = dict(epochs=1, progress=False, checkpoint=tmp_path / "run.pt", device="cpu")
    gfo.fit(net, (X, Y), seed=0, **how)
    with pytest.raises(ValueError, match="holds another run"):
        gfo.fit(net, (X, Y), seed=1, **how)
