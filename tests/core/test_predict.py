"""Prediction: folded, chunked and prefix-sharing, against the plain loop."""

import pytest
import torch
from conftest import Net, shake, toy_model
from torch import nn

import gfo
from gfo.core import predict
from gfo.core.batch import repeat_rows
from gfo.core.predict import sample_logits
from gfo.core.prefix import Prefix


def plain_loop(net, x, masks):
    """Twenty passes, one at a time, through the model with the masks written in as hooks."""
    model, total = net.detach().eval(), 0

    def multiply(by):
        return lambda module, args, out: out * by

    for s in range(len(masks[0])):
        handles = [
            model.get_submodule(site.name).register_forward_hook(multiply(site.spread(z[s])))
            for site, z in zip(net.sites, masks, strict=True)
        ]
        with torch.no_grad():
            total = total + model(x).softmax(1)
        for handle in handles:
            handle.remove()
    return total / len(masks[0])


def image_case():
    model = Net()
    model(torch.randn(32, 3, 6, 6))  # move BatchNorm's statistics off their start
    return model, ["stem.2", "bn"], torch.randn(7, 3, 6, 6)


def shortcut_case():
    model, _, x = image_case()
    return model, ["bn"], x


def mlp_case():
    model, sites = toy_model()
    return model, sites, torch.randn(300, 6)  # more than one block


def token_case():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    encoder.dropout1.p = encoder.dropout2.p = 0.0  # beside which the sites are

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.out = encoder, nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.encoder(x).mean(1))

    return Tokens(), ["encoder.dropout1", "encoder.linear2"], torch.randn(5, 4, 8)


def sly_case():
    """A prefix output, and x itself, used behind the first site by no module, and in place."""

    class Sly(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.site, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.a(x)
            s = self.site(torch.relu(h))
            h.add_(1.0)
            return self.out(s + h * x)

    return Sly(), ["site"], torch.randn(5, 6)


def in_place_case():
    """A prefix output that is changed in place in front of the first site, and read past it."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, h):
            return h + self.fc(self.norm(h))

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.one, self.two = nn.Linear(6, 6), Block(), Block()
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            h = self.embed(x)
            h += 1.0
            return self.out(self.two(self.one(h)))

    return Embedded(), ["one.fc", "two.fc"], torch.randn(5, 6)


class Wired(nn.Module):
    """Modules a, act, site, out, put together by `wiring(self, x)`."""

    def __init__(self, wiring, act):
        super().__init__()
        self.a, self.act, self.site, self.out = (
            nn.Linear(6, 6),
            act,
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )
        self.wiring = wiring

    def forward(self, x):
        return self.out(self.wiring(self, x))


def in_place_module_case():
    """A module changes its input, which is read past the site."""

    def wiring(net, x):
        h = net.a(x)
        return h + net.site(net.act(h))

    return Wired(wiring, nn.ReLU(inplace=True)), ["site"], torch.randn(5, 6)


def same_object_case():
    """A module gives its input back; what happens to one name happens to the other."""

    def wiring(net, x):
        h = net.a(x)
        same = net.act(h)
        s = net.site(h)
        same.add_(1.0)
        return h + s

    return Wired(wiring, nn.Identity()), ["site"], torch.randn(5, 6)


def shared_module_case():
    """A module inside a finished one, and again behind the site."""

    def wiring(net, x):
        return net.act(net.site(net.enc(x)))

    net = Wired(wiring, nn.ReLU())
    net.enc = nn.Sequential(net.a, net.act)
    return net, ["site"], torch.randn(5, 6)


def channels_last_case():
    """Rows that do not lie in memory as their shape says, flattened without a module."""

    def wiring(net, x):
        return net.site(net.a(x.flatten(1)))

    x = torch.randn(5, 1, 3, 2).permute(0, 3, 1, 2)
    return Wired(wiring, nn.ReLU()), ["site"], x


def list_case():
    """A module of the prefix appends its output to a list that is read behind the site."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, h, seen):
            seen.append(self.fc(h).relu())
            return seen[-1]

    def wiring(net, x):
        seen = []
        return net.site(net.block(x, seen)) + torch.stack(seen).sum(0)

    net = Wired(wiring, nn.ReLU())
    net.block = Block()
    return net, ["site"], torch.randn(5, 6)


def attribute_case():
    """A module of the prefix leaves a skip connection in an attribute."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.skip = nn.Linear(6, 6), None

        def forward(self, x):
            self.skip = self.fc(x)
            return self.skip.relu()

    net = Wired(lambda net, x: net.site(net.encoder(x)) + net.encoder.skip, nn.ReLU())
    net.encoder = Encoder()
    return net, ["site"], torch.randn(5, 6)


def view_case():
    """A module of the prefix returns a view, changed in place, whose base is read later."""

    def wiring(net, x):
        h = net.a(x)
        return net.site(net.act(net.view(h)).flatten(1) * 1.0) + h

    net = Wired(wiring, nn.ReLU(inplace=True))
    net.view = nn.Unflatten(1, (2, 3))
    return net, ["site"], torch.randn(5, 6)


CASES = [
    mlp_case, image_case, shortcut_case, token_case, sly_case, in_place_case, in_place_module_case,
    same_object_case, shared_module_case, channels_last_case, list_case, attribute_case, view_case,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", [1, 10**9])
def test_predict_equals_the_plain_loop(case, memory):
    torch.manual_seed(0)
    model, sites, x = case()
    net = gfo.attach(model, sites, gfo.RandomDropout(), x[:3])
    shapes = [
        (20, len(x), s.tokens, s.width) if s.tokens else (20, len(x), s.width) for s in net.sites
    ]
    masks = [torch.rand(shape).round() for shape in shapes]
    got = gfo.predict(net, x, masks=masks, memory=memory)
    torch.testing.assert_close(got, plain_loop(net, x, masks), rtol=0, atol=1e-5)


def test_a_model_that_changes_its_input_leaves_the_callers_alone():
    torch.manual_seed(0)

    def wiring(net, x):
        return net.site(net.a(x.mul_(2.0))) + x

    model, x = Wired(wiring, nn.ReLU()), torch.randn(5, 6)
    net = gfo.attach(model, ["site"], gfo.RandomDropout(), x.clone())
    masks = [torch.rand(20, 5, 6).round()]
    before = x.clone()
    got = gfo.predict(net, x, masks=masks)
    assert torch.equal(x, before)
    want = torch.stack([model.out(z * model.site(model.a(2 * x)) + 2 * x) for z in masks[0]])
    torch.testing.assert_close(got, want.softmax(2).mean(0), rtol=0, atol=1e-5)


def test_prediction_does_not_depend_on_chunking_and_rows_sum_to_one():
    torch.manual_seed(0)
    model, sites, x = image_case()
    net = shake(gfo.attach(model, sites, gfo.GFlowOut(), x))
    a, b = gfo.predict(net, x, memory=1), gfo.predict(net, x)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.sum(1), torch.ones(7), rtol=0, atol=1e-6)
    assert sample_logits(net, x, 3).shape == (3, 7, 4)


def test_repeated_rows_are_a_copy_that_lies_in_memory_as_they_do():
    rows = torch.randn(2, 3)
    for times in (1, 4):
        many = repeat_rows(rows, times)
        assert many.shape == (2 * times, 3)
        torch.testing.assert_close(many, rows.repeat(times, 1))
        before = rows.clone()
        many.mul_(2.0)  # the copy, not the rows that the next fold starts from
        assert torch.equal(rows, before)
    maps = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    for times in (1, 2):
        assert repeat_rows(maps, times).is_contiguous(memory_format=torch.channels_last)
    assert repeat_rows(torch.tensor([1, 2]), 2).tolist() == [1, 2, 1, 2]


def test_inference_mode_changes_nothing():
    model, sites, x = in_place_module_case()
    net = gfo.attach(model, sites, "gflowout", x)
    for memory in (1, None):  # rows shared until they are written to, and rows repeated
        with torch.inference_mode():
            inside = gfo.predict(net, x, memory=memory)
        torch.testing.assert_close(inside, gfo.predict(net, x), rtol=0, atol=1e-6)


def test_prefix_runs_once_and_modules_used_again_behind_the_site_still_compute():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU()
            self.out = nn.Linear(6, 3)

        def forward(self, x):
            h = self.relu(self.a(x))
            return self.out(self.relu(h + self.b(h)))

    model, x = Twice(), torch.randn(4, 6)
    net = gfo.attach(model, ["b"], gfo.RandomDropout(), x)
    rows = []
    model.a.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    prefix = Prefix(net, x)
    assert {m for m in prefix.kept} == {model.a, model.b, model.relu}
    masks = [torch.rand(20, 4, 6).round()]
    got = gfo.predict(net, x, masks=masks)
    torch.testing.assert_close(got, plain_loop(net, x, masks), rtol=0, atol=1e-5)


def test_batch_as_large_as_a_position_table():
    """A module that returns a (T, C) table must not be mistaken for one that returns B rows."""
    torch.manual_seed(0)

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8))

        def forward(self):
            return self.weight

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.mix, self.out = Table(), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.mix(x + self.table()).mean(1))

    x = torch.randn(4, 4, 8)  # B = T = 4
    net = gfo.attach(Positions(), ["mix"], gfo.RandomDropout(), x)
    assert "table" not in net.spec.batched and "mix" in net.spec.batched
    masks = [torch.rand(20, 4, 4, 8).round()]
    got = gfo.predict(net, x, masks=masks)
    torch.testing.assert_close(got, plain_loop(net, x, masks), rtol=0, atol=1e-5)


def test_nothing_is_touched_and_the_same_call_gives_the_same_answer():
    torch.manual_seed(0)
    model, sites, x = image_case()
    net = gfo.attach(model, sites, "gflowout", x)
    net.train()
    y = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    first = gfo.predict(net, x)
    gfo.score(net, x, y, gfo.sample(net, x, y))
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(first, gfo.predict(net, x))
    assert not torch.equal(first, gfo.predict(net, x, seed=1))
    torch.manual_seed(3)
    masks = gfo.sample(net, x)
    torch.manual_seed(3)
    assert all(map(torch.equal, masks, gfo.sample(net, x)))
    assert not all(map(torch.equal, masks, gfo.sample(net, x)))


def test_out_of_memory_halves_the_fold_and_goes_on(monkeypatch):
    torch.manual_seed(0)
    model, sites, x = image_case()
    net = gfo.attach(model, sites, gfo.RandomDropout(), x)
    want = gfo.predict(net, x)
    real, tried = predict.masked_pass, []

    def small_device(net, x, **how):
        tried.append(len(x))
        if len(x) > 30:
            raise torch.cuda.OutOfMemoryError("pretended")
        return real(net, x, **how)

    monkeypatch.setattr(predict, "masked_pass", small_device)
    with pytest.warns(UserWarning, match="out of memory: folding"):
        got = gfo.predict(net, x)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert tried[:4] == [140, 70, 35, 14]
