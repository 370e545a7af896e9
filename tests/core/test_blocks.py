"""Prediction as it is used: arrays, loaders, any length or size, shared masks, little memory."""

import subprocess
import sys
from collections import UserDict

import pytest
import torch
from conftest import Net, shake, toy_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gfo
from gfo.core.noise import generator

Y = torch.arange(300) % 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    return shake(gfo.attach(*toy_model(), "gflowout", torch.randn(2, 6)))


@pytest.fixture
def x():
    return torch.randn(300, 6, generator=torch.Generator().manual_seed(1))


def near(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


LOADERS = {
    "x": lambda x: DataLoader(x, 64),
    "(x,)": lambda x: DataLoader(TensorDataset(x), 7),
    "(x, y)": lambda x: DataLoader(TensorDataset(x, Y), 100),
    "(x, y, more)": lambda x: DataLoader(TensorDataset(x, Y, Y), 300),
    "generator of arrays": lambda x: (part.numpy() for part in x.split(11)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_is_answered_as_one_batch_of_its_rows(kind, net, x):  # faults B28
    near(gfo.predict(net, LOADERS[kind](x)), gfo.predict(net, x))
    near(gfo.sample_logits(net, LOADERS[kind](x), 3), gfo.sample_logits(net, x, 3))
    shared = gfo.sample_logits(net, LOADERS[kind](x), 3, masks="shared")
    near(shared, gfo.sample_logits(net, x, 3, masks="shared"))


def test_a_loader_that_shuffles_is_refused_where_rows_are_answered(net, x):
    loader = DataLoader(TensorDataset(x, Y), 70, shuffle=True)
    masks = gfo.sample(net, x, Y, seed=0)
    for ask in (
        gfo.predict, gfo.sample_logits, gfo.predictive, lambda *_: gfo.score(*_, None, masks)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="the loader shuffles, .*: shuffle=False"):
            ask(net, loader)


def test_an_ensemble_and_a_method_without_draws_read_loaders_too(net, x):  # faults B28
    both = gfo.Ensemble([net, shake(gfo.attach(*toy_model(), "random", x))])
    near(gfo.predict(both, DataLoader(x, 70)), gfo.predict(both, x))
    near(gfo.predict(both, x, 20), both.likelihood.probs(gfo.sample_logits(both, x, 20)).mean(0))
    plain = gfo.attach(*toy_model(), "deterministic", x)
    near(gfo.predict(plain, DataLoader(x, 70)), gfo.predict(plain, x))
    assert gfo.sample_logits(plain, DataLoader(x, 70), 5).shape == (5, 300, 3)


def test_score_reads_loaders_and_arrays(net, x):  # faults B28
    masks = gfo.sample(net, x, Y, seed=0)
    want = gfo.score(net, x, Y, masks)
    for got in (
        gfo.score(net, DataLoader(TensorDataset(x, Y), 70), None, masks),
        gfo.score(net, x.numpy(), Y.numpy(), [mask.numpy() for mask in masks]),
    ):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, want, strict=True))
    arrays = gfo.sample(net, x.numpy(), Y.numpy(), seed=0)
    assert all(map(torch.equal, arrays, masks))


@pytest.mark.parametrize("kind", ["float64", "float16", "big-endian", "backwards", "read-only"])
def test_arrays_of_any_float_format_are_cast_to_the_models(kind, net, x):  # faults C, B28
    array = x.half().float().numpy()
    want = gfo.predict(net, torch.from_numpy(array.copy()))
    if kind == "big-endian":
        with pytest.raises(ValueError, match="byte order"):
            gfo.predict(net, array.astype(">f4"))
        return
    if kind == "backwards":
        array = array[::-1].copy()[::-1]
    elif kind == "read-only":
        array.setflags(write=False)
    else:
        array = array.astype(kind)
    near(gfo.predict(net, array), want)
    near(gfo.predict(net, torch.from_numpy(array.copy())), want)


class Encoder(nn.Module):
    """Token numbers, a mask of padding, and a site that pools."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        return self.out(self.mix(h.sum(1) / attention_mask.sum(1, keepdim=True)).tanh())


def words(batch, length, seed=0):
    gen = torch.Generator().manual_seed(seed)
    ids = torch.randint(11, (batch, length), generator=gen)
    return UserDict(input_ids=ids, attention_mask=torch.ones(batch, length))


def test_a_mapping_of_other_length_runs_where_the_site_pools():  # faults B18, B20
    torch.manual_seed(0)
    net = gfo.attach(Encoder().eval(), ["mix"], "random", dict(words(2, 5)))
    for length in (3, 5, 9):
        x, ones = words(4, length), [torch.ones(1, 4, 8)]
        with torch.no_grad():
            near(gfo.sample_logits(net, x, masks=ones)[0], net.model(**x))
        assert gfo.sample_logits(net, x, 20).std(0).min() > 1e-3
    batches = [words(3, 4, 1), words(3, 4, 2), words(2, 7, 3)]
    got = gfo.predict(net, iter(batches), masks="shared")
    near(got, torch.cat([gfo.predict(net, b, masks="shared") for b in batches]))


def test_images_of_another_size_run_where_sites_pool_and_with_labels():  # faults B20
    torch.manual_seed(0)
    net = shake(gfo.attach(Net(), ["stem.2", "bn"], "gflowout", torch.randn(2, 3, 40, 40))).eval()
    x, y = torch.randn(5, 3, 44, 36), torch.tensor([0, 1, 2, 3, 0])
    masks = gfo.sample(net, x, y, seed=0)
    assert torch.isfinite(gfo.score(net, x, y, masks).log_q).all()
    got = gfo.sample_logits(net, x, masks=[mask[None] for mask in masks])[0]
    near(got, gfo.masked_pass(net, x, masks=masks).logits.detach())
    with pytest.raises(ValueError, match=r"x has shape \(5, 3, 44\), the example had"):
        gfo.predict(net, torch.randn(5, 3, 44))


def test_log_z_that_reads_x_itself_refuses_another_size_in_one_line():  # faults B20
    net = gfo.attach(Net(), ["stem.2", "bn"], "gflowout", torch.randn(2, 3, 6, 6)).eval()
    x, y = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    assert gfo.predict(net, x).shape == (5, 4)  # the test-time policy does not read it
    with pytest.raises(ValueError, match="log Z reads the 108 numbers") as error:
        gfo.sample(net, x, y)
    assert "\n" not in str(error.value)


def test_what_the_model_cannot_run_names_shape_and_format(net, x):  # faults B20, C
    for bad, message in (
        (x[:, :5], r"x has shape \(300, 5\), the example had \(B, \*\(6,\)\): "),
        (x.to(torch.uint8), "x is of uint8, which the model does not take"),
        (x.long(), "x is of int64, which the model does not take"),
    ):
        for call in (gfo.predict, lambda n, b: gfo.fit(n, (b, Y), epochs=1, progress=False)):
            with pytest.raises(ValueError, match=message) as error:
                call(net, bad)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["gflowout", "random", "id-gflowout", "concrete"])
def test_with_shared_masks_an_answer_does_not_depend_on_its_place(method, x):  # faults A16
    torch.manual_seed(0)
    net = shake(gfo.attach(*toy_model(), method, x[:2]))
    order = torch.randperm(300, generator=generator(0, "order"))
    how = dict(masks="shared", seed=3)
    near(gfo.predict(net, x[order], **how), gfo.predict(net, x, **how)[order])
    near(gfo.predict(net, x[299:], **how), gfo.predict(net, x, **how)[299:])
    if not net.method.shared:
        own, moved = gfo.predict(net, x), gfo.predict(net, x[order])
        assert (moved - own[order]).abs().max() > 1e-3
        assert torch.equal(own, gfo.predict(net, x, masks="own"))


def test_shared_masks_are_masks_of_the_same_policy(net, x):  # faults A16
    far = dict(samples=4000, seed=1)
    shared = gfo.predict(net, x[:3], masks="shared", **far)
    own = gfo.predict(net, x[:3], **far)
    assert (shared - own).abs().max() < 0.02  # 4 standard errors of a mean of 4,000


@pytest.mark.parametrize("where", ["backbone", "policy", "scale"])
@pytest.mark.parametrize("what", ["predict", "sample_logits", "sample", "sample y", "score"])
def test_answers_that_are_nan_are_refused(where, what, net, x):  # faults A9
    x, y = x[:4], Y[:4]
    masks = gfo.sample(net, x, y)
    with torch.no_grad():
        if where == "backbone":
            next(net.model.parameters())[0, 0] = torch.nan
        elif where == "policy":
            for p in net.method.parameters():
                p.fill_(torch.nan)
        else:  # finite weights, an answer that is not
            for layer in net.model:
                for p in layer.parameters():
                    p.mul_(1e30)
    call = {
        "predict": lambda: gfo.predict(net, x),
        "sample_logits": lambda: gfo.sample_logits(net, x),
        "sample": lambda: gfo.sample(net, x),
        "sample y": lambda: gfo.sample(net, x, y),
        "score": lambda: gfo.score(net, x, y, masks),
    }[what]
    cause = "numbers overflow" if where == "scale" else "is not finite"
    with pytest.raises(ValueError, match=f"the network answers NaN: .*{cause}") as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["predict", "sample_logits", "sample", "predictive"])
def test_infinite_answers_and_policies_are_refused(what, net, x):  # faults A9
    calls = {
        "predict": lambda n: gfo.predict(n, x),
        "sample_logits": lambda n: gfo.sample_logits(n, x),
        "sample": lambda n: gfo.sample(n, x),
        "predictive": lambda n: gfo.predictive(n, x),
    }
    last = [p for p in net.model.parameters() if p.dim() == 1][-1]
    for weight in (last, list(net.method.p.parameters())[-1]):
        before = weight.detach().clone()
        with torch.no_grad():
            weight[0] = torch.inf  # a mask under an infinite logit is all 1, and says nothing
        if weight is last or what != "sample":
            with pytest.raises(ValueError, match="the network answers NaN: ") as error:
                calls[what](net)
            assert "\n" not in str(error.value)
        weight.data.copy_(before)


def test_a_loader_of_mappings_with_labels_is_read_as_fit_reads_it(net, x):  # faults B28
    rows = [{"x": row, "labels": int(label)} for row, label in zip(x, Y, strict=True)]
    loader = DataLoader(rows, 100)
    near(gfo.predict(net, loader), gfo.predict(net, x))
    masks = gfo.sample(net, x, seed=0)
    near(gfo.score(net, loader, None, masks).log_q, gfo.score(net, x, Y, masks).log_q)


def test_the_masked_pass_with_its_defaults(net, x):  # faults B26
    with torch.no_grad():
        near(gfo.masked_pass(net, x).logits, net(x))
        noise = gfo.core.masked_pass.noise_for(net, 300, generator(0))
        tested = gfo.masked_pass(net, x, noise=noise)
        near(tested.logits, gfo.masked_pass(net, x, noise=noise, source="test").logits)
        near(gfo.masked_pass(net, x, Y, masks=tested.masks).logits, tested.logits)


SCRIPT = """
import resource, torch, gfo
torch.set_num_threads(1)
torch.manual_seed(0)
model, sites = gfo.models.mlp(inputs=32, classes=10, hidden=(32, 32))
net, x = gfo.attach(model, sites, "gflowout", torch.randn(2, 32)), torch.randn(10_000, 32)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
gfo.predict(net, x, 1)
one = peak()
gfo.predict(net, x, 1000)
print(peak() - one)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_memory_does_not_grow_with_samples_inputs_and_classes():
    """The logits alone would take 400 MB. What is left is one folded pass, about 15 tensors of
    2 MiB at once, and what the C library keeps of them: 64 MiB is twice that."""
    got = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(got.stdout) < 64


def test_a_loaders_batches_keep_what_is_no_tensor():
    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x, sign):
            return sign * self.b(self.a(x).relu())

    rows = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    batches = [{"x": rows[:3], "sign": 1}, {"x": rows[3:], "sign": -1}]
    signed = gfo.attach(Signed(), ["a"], "deterministic", batches[0])
    apart = torch.cat([gfo.predict(signed, batch) for batch in batches])
    torch.testing.assert_close(gfo.predict(signed, iter(batches)), apart)
