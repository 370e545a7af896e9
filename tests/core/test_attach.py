"""Attach and detach on five architectures, and what must survive in between."""

import copy
import io

import pytest
import torch
import torchvision
from conftest import Net, shake, toy_model
from torch import nn

import gfo
from gfo.core.noise import draw_noise, generator


class Dict(nn.Module):
    """A transformer whose output is a dict."""

    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        layer.dropout1.p = layer.dropout2.p = 0.0  # beside which the sites are
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 3)
        self.time = 1 if batch_first else 0

    def forward(self, x):
        x = x if self.time else x.transpose(0, 1)
        return {"hidden": x, "logits": self.out(self.encoder(x).mean(self.time))}


def cases():
    """(model, sites, example, keywords, widths, tokens)"""
    resnet = torchvision.models.resnet18(num_classes=10)
    widths = [64, 64, 128, 128, 256, 256, 512, 512]
    yield "resnet18", resnet, "layer*.bn2", torch.randn(2, 3, 32, 32), {}, widths, None
    yield "mlp", *toy_model(), torch.randn(3, 6), {}, [4, 3], None
    yield "convnet", Net(), ["stem.2", "bn"], torch.randn(2, 3, 6, 6), {}, [8, 8], None
    x = torch.randn(5, 4, 8)
    yield "encoder", Dict(), "encoder.layers.*.dropout1", x, {"output": "logits"}, [8, 8], 4
    time_first = {"output": "logits", "axes": dict.fromkeys(
        ["encoder.layers.0.linear2", "encoder.layers.1.linear2"], ("T", "B", "C"))}  # fmt: skip
    yield "time first", Dict(False), "encoder.layers.*.linear2", x, time_first, [8, 8], 4
    conv1d = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3))
    letters = {"axes": {"1": ("B", "C", "L")}}
    yield "conv1d", conv1d, ["1"], torch.randn(2, 2, 8), letters, [5], None


CASES = list(cases())


def fingerprint(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [list(m._forward_hooks.values()) for m in model.modules()],
        [sorted(m.__dict__) for m in model.modules()],
    )


def same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(
        torch.equal(v, b[0][k]) for k, v in a[0].items()
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_attach_use_detach_leaves_no_trace(case):
    _, model, sites, x, how, widths, tokens = case
    torch.manual_seed(0)
    model = copy.deepcopy(model)
    next(iter(model.children())).eval()  # mixed modes must come back too
    hook = next(iter(model.children())).register_forward_hook(lambda m, a, out: None)
    before = fingerprint(model)
    net = gfo.attach(model, sites, gfo.GFlowOut(), x, **how)
    assert [s.width for s in net.sites] == widths
    assert {s.tokens for s in net.sites} == {tokens}
    net.eval()
    probs = gfo.predict(net, x)
    torch.testing.assert_close(probs.sum(1), torch.ones(len(x)), rtol=0, atol=1e-5)
    y = torch.zeros(len(x), dtype=torch.long)
    masks = gfo.sample(net, x, y)
    assert [z.shape[-1] for z in masks] == widths
    assert all(part.shape == (len(x),) for part in gfo.score(net, x, y, masks))
    assert net.detach() is model
    assert same(before, fingerprint(model))
    hook.remove()


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_masks_act_where_they_should(case):
    """With all masks one, the model is itself; with one bit zero, that feature is silenced."""
    _, model, sites, x, how, widths, tokens = case
    torch.manual_seed(0)
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        plain = model(x)
    plain = plain["logits"] if how.get("output") else plain
    net = gfo.attach(model, sites, gfo.RandomDropout(), x, **how)
    lead = (1, len(x), tokens) if tokens else (1, len(x))
    ones = [torch.ones(*lead, w) for w in widths]
    torch.testing.assert_close(
        gfo.predict(net, x, masks=ones), plain.softmax(1), rtol=1e-4, atol=1e-6
    )
    seen = []
    site = net.sites[0]
    module = model.get_submodule(site.name)
    module.register_forward_hook(
        lambda m, a, out: seen.append(out.clone())
    )  # after the mask's hook
    ones[0][..., 1] = 0
    gfo.predict(net, x, masks=ones)
    feature = seen[-1].movedim(site.axes.index("C"), 0)
    assert (feature[1] == 0).all() and feature.abs().sum() > 0


def test_the_inference_fast_path_does_not_skip_a_site():
    torch.manual_seed(0)
    model, x = Dict().eval(), torch.randn(5, 4, 8)
    net = gfo.attach(model, "encoder.layers.*.dropout1", gfo.RandomDropout(), x, output="logits")
    with torch.no_grad():
        assert len(gfo.sample(net, x)) == 2
    assert not torch.equal(
        gfo.predict(net, x, seed=0, samples=1), gfo.predict(net, x, seed=1, samples=1)
    )


@torch.no_grad()
def test_a_bare_call_is_the_mean_mask_pass_and_never_random(toy):
    net, x, _ = toy
    assert torch.equal(net(x), net(x))
    m, p, h, earlier = net.model, net.method.p, x, []
    for layer, fc in enumerate((m.fc1, m.fc2)):
        h = torch.relu(fc(h))
        keep = torch.sigmoid(p.nets[layer](torch.cat([h, *earlier], 1)))
        h, earlier = h * keep, [*earlier, keep]
    torch.testing.assert_close(net(x), m.out(h))
    model = Dict()
    wrapped = gfo.attach(
        model, "encoder.layers.*.dropout1", "random", torch.randn(2, 4, 8), output="logits"
    )
    assert set(wrapped(torch.randn(2, 4, 8))) == {"hidden", "logits"}


@pytest.mark.parametrize(
    "module",
    [nn.Conv1d(2, 5, 3), nn.ConvTranspose1d(2, 5, 3), nn.BatchNorm1d(2), nn.InstanceNorm1d(2)],
)
def test_channels_of_one_dimensional_modules_are_no_tokens(module):
    """(B, C, L) by the class of the module, unless `axes` say otherwise."""
    x = torch.randn(4, 2, 8)
    model = nn.Sequential(module, nn.Flatten(), nn.LazyLinear(3)).eval()
    width, length = model[0](x).shape[1:]
    model(x)
    net = gfo.attach(model, ["0"], "gflowout", x)
    assert (net.sites[0].axes, net.sites[0].width, net.sites[0].tokens) == ("BCL", width, None)
    assert gfo.sample(net, x)[0].shape == (4, width)
    net.detach()
    told = gfo.attach(model, ["0"], "gflowout", x, axes={"0": ("B", "T", "C")})
    assert (told.sites[0].tokens, told.sites[0].width) == (width, length)


def test_compile_takes_the_attached_resnet_in_one_graph():
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    net = shake(gfo.attach(model, "layer*.bn2", "gflowout", x)).eval()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))
    noise = draw_noise(net.sites, 2, generator(0))
    whole = torch.compile(gfo.masked_pass, fullgraph=True, backend="eager")
    y = torch.tensor([1, 2])
    a, b = (f(net, x, y, noise=noise, source="train") for f in (whole, gfo.masked_pass))
    torch.testing.assert_close(a.log_q, b.log_q)
    assert all(map(torch.equal, a.masks, b.masks))


def test_a_deep_copy_has_its_own_hooks(toy):
    net, x, y = toy
    masks = gfo.sample(net, x, y, seed=0)
    twin = copy.deepcopy(net)
    want = gfo.score(net, x, y, masks)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    net.detach()
    got = gfo.score(twin, x, y, masks)
    assert all(map(torch.equal, got, want))
    assert not any(m._forward_hooks for m in net.model.modules())
    assert not any(m._forward_hooks for m in twin.detach().modules())


def test_state_dict_and_files_round_trip(toy, tmp_path):
    net, x, y = toy
    masks = gfo.sample(net, x, y, seed=0)
    want = gfo.score(net, x, y, masks)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    fresh = gfo.attach(*toy_model(), gfo.GFlowOut(), x)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(map(torch.equal, gfo.score(fresh, x, y, masks), want))
    gfo.save(net, tmp_path / "net.pt")
    for model in (toy_model()[0], gfo.attach(*toy_model(), gfo.GFlowOut(), x)):
        loaded = gfo.load(tmp_path / "net.pt", model)
        assert all(map(torch.equal, gfo.score(loaded, x, y, masks), want))
        assert torch.equal(gfo.predict(loaded, x), gfo.predict(net, x))
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_to_another_dtype_moves_everything(toy):
    net, x, y = toy
    net.double()
    masks = gfo.sample(net, x.double(), y)
    assert gfo.score(net, x.double(), y, masks).log_lik.shape == (8,)


def test_context_manager_and_training_keep_the_trained_backbone_only():
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    keys, first = list(model.state_dict()), model.fc1.weight.clone()
    with gfo.attach(model, sites, "gflowout", x) as net:
        gfo.fit(net, (x, y), epochs=1, progress=False)
    assert list(model.state_dict()) == keys and not torch.equal(model.fc1.weight, first)
    assert not any(m._forward_hooks for m in model.modules())


class Odd(nn.Module):
    """Sites that cannot carry a mask."""

    def __init__(self):
        super().__init__()
        self.shared, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        h = self.shared(self.shared(x))
        h = self.attention(h[:, None], h[:, None], h[:, None])[0][:, 0]
        return self.out(h), h


@pytest.mark.parametrize(
    ("sites", "how", "message"),
    [
        ("layer*", {}, "layer*' matches no module"),
        (["outt"], {}, "no module 'outt'; nearest name: ['out']"),
        ([], {}, "sites is empty"),
        (None, {}, "no names, None"),
        (nn.Linear(6, 6), {}, "no names, Linear"),
        (["unused"], {}, "'unused' is never called"),
        (["shared"], {}, "'shared' is called 2 times"),
        (["attention"], {}, "'attention' returns a tuple, no tensor"),
        (["out"], {"output": 5}, "output=5"),
        (["out"], {"output": None}, "returns a tuple"),
        (["out"], {"axes": {"out": ("B", "T", "C")}}, "do not fit site 'out'"),
        (["out"], {"axes": {"none": ("B", "C")}}, "'none', which is not a site"),
    ],
)
def test_bad_sites_are_named(sites, how, message):
    with pytest.raises(ValueError) as error:
        gfo.attach(Odd(), sites, "random", torch.randn(2, 6), **{"output": 0, **how})
    assert message in str(error.value) and "\n" not in str(error.value)


class TimeFirst(nn.Module):
    """Tokens before the batch, as `nn.MultiheadAttention` has them by default."""

    def __init__(self):
        super().__init__()
        self.read, self.site, self.out = nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.site(self.read(x.transpose(0, 1))).mean(0))  # (B, T, C) -> (T, B, C)


@pytest.mark.parametrize("shape", [(2, 5, 6), (5, 5, 6)])
def test_a_batch_on_another_axis_is_refused_until_it_is_named(shape):
    x = torch.randn(shape)
    with pytest.raises(ValueError, match="axis 0 of site 'site', of shape .* is not the batch of"):
        gfo.attach(TimeFirst(), ["site"], "random", x)
    net = gfo.attach(TimeFirst(), ["site"], "random", x, axes={"site": "TBC"})
    assert net.sites[0].tokens == 5 and gfo.sample(net, x)[0].shape == (len(x), 5, 6)


def test_a_load_that_fails_leaves_the_model_as_it_was(toy, tmp_path):
    net, x, _ = toy
    gfo.save(net, tmp_path / "net.pt")
    other, sites = toy_model(classes=2)  # all but the last layer fits
    before = fingerprint(other)
    with pytest.raises(ValueError, match="holds another architecture"):
        gfo.load(tmp_path / "net.pt", other)
    assert same(fingerprint(other), before)
    gfo.attach(other, sites, "random", x)
    with pytest.raises(ValueError, match="already has masks"):
        gfo.load(tmp_path / "net.pt", net.model)


def test_a_bare_call_without_hooks_is_refused(toy):
    net, x, _ = toy
    net.detach()
    with pytest.raises(ValueError, match=r"did not run in this pass.*after detach\(\)"):
        net(x)


def test_a_class_in_no_registry_is_not_saved_as_its_parent(toy, tmp_path):
    class Mine(gfo.RandomDropout):
        pass

    model, sites = toy_model()
    with pytest.raises(ValueError, match="Mine is not registered, 'random' is another class"):
        gfo.save(gfo.attach(model, sites, Mine(), toy[1]), tmp_path / "net.pt")


def test_attaching_twice_or_reusing_a_method_is_refused(toy):
    net, x, _ = toy
    with pytest.raises(ValueError, match="already has masks"):
        gfo.attach(net.model, ["relu1"], "random", x)
    with pytest.raises(ValueError, match="already belongs to a network"):
        gfo.attach(*toy_model(), net.method, x)
