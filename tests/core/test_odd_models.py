"""Models, batches and likelihoods that are not like the usual ones: they work, or are refused."""

from collections import namedtuple
from functools import partial

import pytest
import torch
from conftest import shake, toy_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import gfo
from gfo.core.batch import Tokens
from gfo.core.registry import METHODS
from gfo.methods import create

Y = torch.arange(5) % 3


class Pair(nn.Module):
    """Two inputs that do not stand for each other."""

    def __init__(self):
        super().__init__()
        self.read, self.out = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, a, b):
        return self.out(self.read(a + 2 * b))


KINDS = {name: partial(create, name) for name in METHODS} | {
    "subtb": partial(gfo.GFlowOut, objective="subtb"),
    "unit-wise": partial(gfo.GFlowOut, policy="unitwise"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_double_networks_before_and_after_attach(kind, when):
    torch.manual_seed(0)
    model, sites = toy_model()
    x, method = torch.randn(5, 6, dtype=torch.float64), KINDS[kind]()
    if when == "before":
        net = gfo.attach(model.double(), sites, method, x)
    else:
        net = gfo.attach(model, sites, method, x.float()).double()
    gfo.fit(net, (x, Y), epochs=1, batch=5, progress=False, device="cpu")
    masks = gfo.sample(net, x, Y)
    assert gfo.score(net, x, Y, masks).log_lik.shape == (5,)
    assert gfo.predict(net, x, 2).isfinite().all() and net.eval()(x).dtype == torch.float64


def test_named_tuples_and_dicts_are_batches():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 6)
    model = Pair()
    as_tuple = gfo.attach(model, ["read"], "gflowout", namedtuple("Two", "a b")(a, b))
    want = gfo.predict(as_tuple, (a, b))
    as_tuple.detach()
    net = shake(gfo.attach(model, ["read"], gfo.GFlowOut(activation="before"), {"b": b, "a": a}))
    assert want.shape == (5, 3)
    masks = gfo.sample(net, {"a": a, "b": b}, Y, seed=0)
    one, other = ({"a": a, "b": b}, {"b": b, "a": a})  # the order of keys says nothing
    assert torch.equal(gfo.predict(net, one), gfo.predict(net, other))
    first, second = (gfo.score(net, x, Y, masks) for x in (one, other))
    assert torch.equal(first.log_z, second.log_z) and torch.equal(first.log_q, second.log_q)


class Padded(nn.Module):
    def __init__(self, keyword):
        super().__init__()
        self.site, self.out, self.keyword = Tokens(), nn.Linear(4, 3), keyword

    def forward(self, x):
        real = (x != 0).any(-1)
        h = self.site(x, real=real) if self.keyword else self.site(x, real)
        return self.out(h.mean(1))


def test_padding_told_by_keyword_is_refused_not_missed():
    x = torch.randn(2, 3, 4)
    x[0, 2] = 0
    net = gfo.attach(Padded(False), ["site"], "random", x)
    assert (gfo.sample(net, x)[0][0, 2] == 1).all()
    with pytest.raises(ValueError, match="does not run on the example, TypeError: .*positional"):
        gfo.attach(Padded(True), ["site"], "random", x)


def test_a_mask_of_another_number_of_tokens_than_the_batch_is_refused():
    x = torch.randn(2, 5, 4)
    model = Padded(False)
    net = gfo.attach(model, ["site"], "random", x)
    with pytest.raises(ValueError, match="1 tokens, x 5 there"):
        gfo.score(net, x, Y[:2], [torch.ones(2, 1, 4)])


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.one, self.site, self.two = nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        def block(h):
            return self.two(self.site(self.one(h)))

        return checkpoint(block, x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # at `attach`
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_site_inside_a_checkpoint_is_refused_in_the_backward_pass(reentrant):
    net = gfo.attach(Checkpointed(reentrant), ["site"], "random", torch.randn(5, 6))
    x, mask = torch.randn(5, 6, requires_grad=True), torch.ones(5, 8)
    out = gfo.masked_pass(net, x, Y, masks=[mask])
    with pytest.raises(ValueError, match="switch activation checkpointing off"):
        out.log_lik.sum().backward()


class Ragged(nn.Module):
    """In eval mode torch's encoder hands nested tensors from layer to layer."""

    def __init__(self, **how):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, **how)
        self.site, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, there):
        h = self.encoder(x, src_key_padding_mask=there == 0)
        return self.out(torch.relu(self.site(h[:, 0])))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_stepped_around_or_refused():
    torch.manual_seed(0)
    there = (torch.arange(5) < torch.tensor([[5], [2], [3], [1]])).long()
    x = (torch.randn(4, 5, 8), there)
    model = Ragged()
    masks = [torch.rand(20, 4, 8).round()]
    with gfo.attach(model, ["site"], "random", x) as net:
        got = gfo.predict(net, x, masks=masks)
        passes = [gfo.masked_pass(net.eval(), x, masks=[z]).logits.softmax(1) for z in masks[0]]
    torch.testing.assert_close(got, torch.stack(passes).mean(0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="enable_nested_tensor=False"):
        gfo.attach(model, ["encoder.layers.0", "site"], "random", x)
    gfo.attach(Ragged(enable_nested_tensor=False), ["encoder.layers.0", "site"], "random", x)


def test_a_second_name_of_a_module_is_called_that():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    model.other = model[0]
    with pytest.raises(ValueError, match="'other' is a second name of module '0'"):
        gfo.attach(model, ["other"], "random", torch.randn(2, 6))


class Table(nn.Module):
    """Its largest output has no batch axis."""

    def __init__(self):
        super().__init__()
        self.table, self.read, self.out = nn.Embedding(50, 16), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.read(x) + self.table(torch.arange(50)).mean())


def test_a_file_fits_whatever_the_batch_of_the_example(tmp_path):
    gfo.save(gfo.attach(Table(), ["read"], "random", torch.randn(2, 6)), tmp_path / "net.pt")
    gfo.load(tmp_path / "net.pt", gfo.attach(Table(), ["read"], "random", torch.randn(8, 6)))


def test_a_likelihood_that_does_not_say_what_it_is_goes_by_its_class(tmp_path):
    class Mute(gfo.Categorical):
        __repr__ = object.__repr__

    x = torch.randn(5, 6)
    model, sites = toy_model()
    gfo.save(gfo.attach(model, sites, "random", x, likelihood=Mute()), tmp_path / "net.pt")
    loaded = gfo.load(tmp_path / "net.pt", toy_model()[0], likelihood=Mute())
    assert isinstance(loaded.likelihood, Mute)
    with pytest.raises(ValueError, match="Mute there"):
        gfo.load(tmp_path / "net.pt", toy_model()[0])


def test_reestimation_is_repeatable_with_dropout_in_the_backbone():
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )
    x = torch.randn(64, 6)
    with pytest.warns(UserWarning, match="own, p > 0, acts in training beside"):  # faults A15
        net = gfo.attach(model, ["1"], "random", x)
    state, found = torch.get_rng_state(), []
    for _ in range(2):
        gfo.train.reestimate(net, x, batch=32)
        found.append(model[4].running_var.clone())
    assert torch.equal(*found) and torch.equal(state, torch.get_rng_state())


def test_relaxed_masks_can_be_given_back():
    x = torch.randn(5, 6)
    net = gfo.attach(*toy_model(), gfo.ConcreteDropout(relaxed=True), x)
    masks = gfo.sample(net, x)
    assert ((masks[0] > 0) & (masks[0] < 1)).any()
    gfo.score(net, x, Y, masks)
    strict = gfo.attach(*toy_model(), gfo.ConcreteDropout(), x)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        gfo.score(strict, x, Y, masks)


def test_soft_targets_are_audited_too():
    torch.manual_seed(0)
    x, y = torch.randn(2, 6), torch.rand(2, 3)
    net = shake(gfo.attach(*toy_model(), gfo.GFlowOut(), x, likelihood=gfo.SoftTargets()))
    found = gfo.audit_masks(net, x, y, draws=10)
    assert (found["tv"] > 0).all() and len(found) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, x: gfo.fit(net, (x, Y), (x, Y), patience=0),
         "patience is 0, needs to be at least 1"),
        (lambda net, x: gfo.predict(net, x, masks=[torch.ones(0, 5, 4), torch.ones(0, 5, 3)]),
         "samples is 0"),
    ],
)  # fmt: skip
def test_nothing_to_do_is_said(call, message):
    x = torch.randn(5, 6)
    with pytest.raises(ValueError, match=message):
        call(gfo.attach(*toy_model(), "gflowout", x), x)
