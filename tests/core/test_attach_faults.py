"""What `attach` sees, and what it refuses: a test per line of the list of faults, by its number."""

import copy
import math
import warnings
from collections import UserDict, namedtuple
from functools import partial

import pytest
import torch
import torchvision
from conftest import toy_model
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

import gfo

X = torch.randn(3, 6)
Y = torch.arange(3)


def axes_of(model, sites, x, **how):
    with gfo.attach(model.eval(), sites, "random", x, **how) as net:
        return {site.name: (site.axes, site.width) for site in net.sites}


class Lambda(nn.Module):
    """`f(self, x)` over modules a, b, …; the logits are a Linear of what is left of the axes."""

    def __init__(self, f, width, **modules):
        super().__init__()
        self.f, self.out = f, nn.Linear(width, 3)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        h = self.f(self, x)
        return self.out(h if h.dim() == 2 else h.flatten(2).mean(2) if h.dim() == 4 else h.mean(1))


@pytest.mark.parametrize(
    ("model", "want"),
    [
        (torchvision.models.swin_t, {
            "features.0.0": ("BCHW", 96), "features.1.0.norm2": ("BHWC", 96),
            "features.1.0.mlp.1": ("BHWC", 384), "features.1.1": ("BHWC", 96),
            "features.2": ("BHWC", 192), "permute": ("BCHW", 768),
        }),
        (torchvision.models.convnext_tiny, {
            "features.0.1": ("BCHW", 96), "features.1.0.block.0": ("BCHW", 96),
            "features.1.0.block.2": ("BHWC", 96), "features.1.0.block.4": ("BHWC", 384),
            "features.1.1": ("BCHW", 96), "features.2.0": ("BCHW", 96),
        }),
        (torchvision.models.shufflenet_v2_x0_5, {
            "stage2.0": ("BCHW", 48), "conv5": ("BCHW", 1024),
        }),
    ],
    ids=["swin", "convnext", "shufflenet"],
)  # fmt: skip
def test_a3_channels_are_where_the_model_has_them(model, want):
    assert axes_of(model(num_classes=3), list(want), torch.randn(1, 3, 32, 32)) == want


def third(name):
    """Three axes: where C is, is said by what made them."""
    last = {"site": ("BTC", 5)}
    middle = {"site": ("BCL", 5)}
    conv, drop, site = nn.Conv1d(4, 5, 3, padding=1), nn.Dropout(0.0), nn.Identity()
    lin, x = nn.Linear(4, 5), torch.randn(2, 7, 4)
    return {
        "conv relu": (Lambda(lambda m, x: m.site(m.a(x)), 7, a=conv, site=nn.ReLU()),
                      torch.randn(2, 4, 7), middle),
        "function between": (Lambda(lambda m, x: m.site(torch.relu(m.a(x)) * 2), 7, a=conv,
                                    site=drop), torch.randn(2, 4, 7), middle),
        "container": (Lambda(lambda m, x: m.site(x), 7, site=nn.Sequential(conv, nn.GELU())),
                      torch.randn(2, 4, 7), middle),
        "transposed": (Lambda(lambda m, x: m.site(m.a(x).transpose(1, 2)), 5, a=conv, site=site),
                       torch.randn(2, 4, 7), last),
        "patches": (Lambda(lambda m, x: m.site(m.a(x).flatten(2).mT), 5, a=nn.Conv2d(3, 5, 2),
                           site=site), torch.randn(2, 3, 6, 6), last),
        "linear": (Lambda(lambda m, x: m.site(m.a(x)), 5, a=lin, site=nn.GELU()), x, last),
        "square": (Lambda(lambda m, x: m.site(m.a(x)), 5, a=nn.Conv1d(5, 5, 1), site=nn.ReLU()),
                   torch.randn(2, 5, 5), middle),
        "rnn": (Lambda(lambda m, x: m.site(m.a(x)[0]), 5, site=drop,
                       a=nn.GRU(4, 5, batch_first=True)), x, last),
        "attention": (Lambda(lambda m, x: m.site(m.a(x, x, x)[0]), 4, site=site,
                             a=nn.MultiheadAttention(4, 2, batch_first=True)), x,
                      {"site": ("BTC", 4)}),
        "embedding": (Lambda(lambda m, x: m.site(m.a(x)), 5, a=nn.Embedding(9, 5), site=drop),
                      torch.randint(9, (2, 7)), last),
        "weights @ maps": (Lambda(lambda m, x: m.site(m.w.weight @ m.a(x)), 7, a=conv, site=site,
                                  w=nn.Linear(5, 5)), torch.randn(2, 4, 7), middle),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["conv relu", "function between", "container", "transposed", "patches", "linear", "square",
     "rnn", "attention", "embedding", "weights @ maps"],
)  # fmt: skip
def test_a3_three_axes_are_inherited_from_what_made_them(name):
    model, x, want = third(name)
    assert axes_of(model, ["site"], x) == want


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 5, 4, 4)])
def test_a3_what_nothing_tells_is_asked_for(shape):
    model = Lambda(lambda m, x: m.site(x), shape[-1] if len(shape) == 3 else 5, site=nn.Tanh())
    with pytest.raises(
        ValueError, match=r"nothing tells .* channels: name its axes with axes="
    ) as e:
        gfo.attach(model, ["site"], "random", torch.randn(shape))
    assert "\n" not in str(e.value)
    assert axes_of(model, ["site"], torch.randn(shape), axes={"site": "BTCH"[: len(shape)]})


def test_a4_two_masks_on_one_activation_are_refused():
    model = torchvision.models.vgg11(num_classes=3)
    blocks = nn.Sequential(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Identity(), nn.Linear(5, 3)
    )
    for net, sites, x, message in (
        (blocks, "*", X, r"matches '0' and '0.0' inside it"),
        (blocks, ["0", "0.1"], X, "sites '0' and '0.1' return the same tensor"),
        (blocks, ["0.1", "1"], X, "sites '0.1' and '1' return the same tensor"),
        (model, ["features", "features.20"], torch.randn(1, 3, 32, 32), "return the same tensor"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            gfo.attach(net.eval(), sites, "random", x)
        assert "\n" not in str(error.value)
        assert not any(m._forward_hooks for m in net.modules())
    gfo.attach(blocks, ["0.0", "0.1"], "random", X)  # two activations


@pytest.mark.parametrize("site", ["2", "1"])
def test_a4_a_site_that_is_the_output_layer_is_warned_of(site):
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 3)))
    names = {"2": "1.1", "1": "1"}
    with pytest.warns(UserWarning, match=f"site '{names[site]}' is the output layer"):
        gfo.attach(model, [names[site]], "random", X)


@pytest.mark.parametrize("last", [[nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.LogSoftmax(1)]])
def test_a4_the_output_layer_is_known_behind_a_view_or_a_log_softmax(last):
    first = nn.Linear(6, 3) if len(last) == 1 else nn.Conv2d(1, 3, 1)
    x = X if len(last) == 1 else torch.randn(4, 1, 5, 5)
    with pytest.warns(UserWarning, match="is the output layer"):
        gfo.attach(nn.Sequential(first, *last), [str(len(last) - 1)], "random", x)


def test_a4_a_view_of_a_masked_activation_is_no_second_site():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    with pytest.raises(ValueError, match="sites '1' and '2' return the same tensor"):
        gfo.attach(model, ["1", "2"], "random", torch.randn(4, 1, 5, 5))


def test_a3_volumes_share_a_bit_per_channel():
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    net = gfo.attach(model.append(nn.Linear(4, 3)), ["1"], "random", torch.randn(2, 1, 5, 5, 5))
    assert net.sites[0].axes == "BCDHW" and gfo.sample(net, torch.randn(2, 1, 5, 5, 5))[0].shape[
        1:
    ] == (4,)


@pytest.mark.parametrize("x", [X.double(), X[0], torch.randn(4, 7), (X, torch.zeros(4)), {"a": X}])
def test_c_an_example_that_the_model_cannot_take_is_said_in_one_line(x):
    with pytest.raises(ValueError, match="the model does not run on the example, ") as error:
        gfo.attach(*toy_model(), "random", x)
    assert "\n" not in str(error.value)


def test_c_sites_may_be_numbers_and_the_model_itself_is_none():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match="matches no module ''"):
        gfo.attach(model, [""], "random", X)
    assert [site.name for site in gfo.attach(model, [1], "random", X).sites] == ["1"]


@pytest.mark.parametrize("likelihood", [None, gfo.Categorical()])
def test_a5_one_output_is_no_class_probability(likelihood):
    model, sites = toy_model(classes=1)
    with pytest.raises(ValueError, match=r"one output.*gfo.Bernoulli\(\).*gfo.Gaussian\("):
        gfo.attach(model, sites, "random", X, likelihood=likelihood)
    assert not any(m._forward_hooks for m in model.modules())
    gfo.attach(model, sites, "random", X, likelihood=gfo.SoftTargets())


class Noise(nn.Module):
    """Never the same twice, in eval mode too."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, h):
        return h + self.by * torch.randn_like(h)


class Headed(nn.Module):
    """A prefix, a site, and a head whose weights may be 0 at first."""

    def __init__(self, prefix, head=1.0):
        super().__init__()
        self.prefix, self.site, self.out = prefix, nn.Linear(6, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.out.weight.mul_(head)
            self.out.bias.mul_(head)

    def forward(self, x):
        return self.out(self.site(self.prefix(x)))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("head", [0.0, 1.0])
def test_a7_a_random_prefix_is_not_kept_whatever_the_head_weighs(head, rows):
    torch.manual_seed(0)
    model = Headed(nn.Sequential(nn.Linear(6, 6), Noise(1.0)), head).eval()
    net = gfo.attach(model, ["site"], "random", X[:rows])
    with torch.no_grad():
        model.out.weight.normal_()
    ones = [torch.ones(20, 3, 6)]
    assert gfo.sample_logits(net, X, masks=ones).std(0).min() > 0.1  # a draw for each sample


@pytest.mark.parametrize("by", [0.0, 1e-6])
def test_a7_noise_behind_a_gate_that_starts_shut_is_not_kept(by):
    net = gfo.attach(Headed(Noise(by)), ["site"], "random", X)
    assert net.spec.batched == ()


class Broadcasts(nn.Module):
    """An encoder that leaves a skip connection in an attribute; one row of it would broadcast."""

    def __init__(self):
        super().__init__()
        self.encoder, self.site, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gate = nn.Parameter(torch.zeros(()))
        forward = self.encoder.forward

        def leaving(x):
            self.skip = forward(x)
            return self.skip.relu()

        self.encoder.forward = leaving

    def forward(self, x):
        return self.out(self.site(self.encoder(x)) + self.gate * self.skip)


def test_a7_an_example_of_one_row_is_judged_by_several():
    torch.manual_seed(0)
    net = gfo.attach(Broadcasts(), ["site"], "random", X[:1])
    assert gfo.predict(net, torch.randn(8, 6)).shape == (8, 3)
    with torch.no_grad():
        net.model.gate.fill_(1.0)
    x, masks = torch.randn(8, 6), [torch.rand(20, 8, 6).round()]
    got = gfo.sample_logits(net, x, masks=masks)
    want = [gfo.masked_pass(net.eval(), x, masks=[z]).logits for z in masks[0]]
    torch.testing.assert_close(got, torch.stack(want))


def test_a7_a_plain_prefix_is_still_kept_under_a_head_of_zeros():
    model = torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3).eval()
    net = gfo.attach(
        model, ["encoder.layers.encoder_layer_0.ln_2"], "random", torch.zeros(1, 3, 8, 8)
    )
    assert {"conv_proj", "encoder.layers.encoder_layer_0.ln_1"} <= set(net.spec.batched)
    assert net.spec.folds and not model.heads.head.weight.any()  # and its weights are its own


def test_a7_equal_rows_cannot_tell_what_may_be_kept():
    ids = torch.zeros(2, 5, dtype=torch.long)
    net = gfo.attach(Texts(), ["site"], "random", {"input_ids": ids, "attention_mask": ids + 1})
    assert net.spec.batched == () and net.spec.folds


@pytest.mark.parametrize("head", [0.0, 1.0])
def test_a8_rows_that_act_on_each_other_are_not_folded(head, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)
    )
    with torch.no_grad():
        model[3].weight.mul_(head)
    net = gfo.attach(model, ["1"], "random", X[:2])
    assert not net.spec.folds
    with torch.no_grad():
        model[3].weight.normal_()
    x, masks = torch.randn(8, 6), [torch.rand(20, 8, 8).round()]
    a, b = (gfo.sample_logits(net, x, masks=masks, memory=m) for m in (1, 2**30))
    want = [gfo.masked_pass(net.eval(), x, masks=[z]).logits for z in masks[0]]
    torch.testing.assert_close(a, torch.stack(want))
    torch.testing.assert_close(b, torch.stack(want))
    gfo.save(net, tmp_path / "net.pt")
    assert not gfo.load(tmp_path / "net.pt", net.detach()).spec.folds


def test_a8_a_file_of_before_loads_and_folds(tmp_path):
    net = gfo.attach(*toy_model(), "random", X)
    gfo.save(net, tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt")
    # as it was before there was a word on outputs of other shapes and on folding
    content["gfo"]["spec"] = content["gfo"]["spec"][:7]
    del content["format"], content["digest"]
    torch.save(content, tmp_path / "net.pt")
    assert gfo.load(tmp_path / "net.pt", toy_model()[0]).spec == net.spec
    content["gfo"]["spec"][5] = []  # what may be shared is no part of what a network is
    torch.save(content, tmp_path / "net.pt")
    gfo.load(tmp_path / "net.pt", net)


def test_a15_torchs_scaling_is_offered():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    z = torch.rand(3, 50).round()
    own, torchs = (
        gfo.attach(copy.deepcopy(model), ["1"], gfo.RandomDropout(keep=0.8, inverted=i), X)
        for i in (False, True)
    )
    h = model[1](model[0](X))
    torch.testing.assert_close(gfo.masked_pass(own, X, masks=[z]).logits, model[2](h * z))
    torch.testing.assert_close(gfo.masked_pass(torchs, X, masks=[z]).logits, model[2](h * z / 0.8))
    torch.testing.assert_close(torchs(X), model(X))  # the mean mask is 1, as in nn.Dropout's eval
    assert "inverted" not in own.method.config and torchs.method.config["inverted"]
    assert "nn.Dropout" in gfo.RandomDropout.__doc__
    with pytest.raises(ValueError, match="take one of them"):
        gfo.RandomDropout(rescale=True, inverted=True)


@pytest.mark.parametrize(("site", "p", "warned"), [("1", 0.3, 1), ("2", 0.3, 1), ("1", 0.0, 0),
                                                   ("4", 0.3, 0)])  # fmt: skip
def test_a15_dropout_of_the_models_own_is_warned_of(site, p, warned, recwarn):
    model = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Dropout(p), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    gfo.attach(model, [site], "random", X)
    assert [f"site(s) {site}: set its p to 0" in str(w.message) for w in recwarn] == [True] * warned


Outputs = namedtuple("Outputs", ["logits", "aux"])


class TwoTypes(nn.Module):
    """As torchvision's googlenet(aux_logits=True): a tensor in eval mode, more in train mode."""

    def __init__(self, outputs):
        super().__init__()
        self.fc, self.site, self.out = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        self.outputs = outputs

    def forward(self, x):
        logits = self.out(self.site(self.fc(x)))
        return self.outputs(logits, logits) if self.training else logits


@pytest.mark.parametrize(
    ("outputs", "how"),
    [(Outputs, {}), (Outputs, {"output": "logits"}), (Outputs, {"output": 0}),
     (lambda a, b: {"main": a, "aux": b}, {"output": "main"})],
)  # fmt: skip
def test_b17_a_model_may_return_more_in_train_mode(outputs, how):
    net = gfo.attach(TwoTypes(outputs), ["site"], "gflowout", X, **how)
    gfo.fit(net, (X, Y), epochs=1, progress=False, device="cpu")
    assert gfo.predict(net, X).shape == (3, 3)


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.site, self.out = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        h = self.site(self.embed(input_ids)) * attention_mask[..., None]
        return self.out(h.mean(1))


def test_b18_any_mapping_is_a_batch():
    ids = torch.randint(9, (3, 5))
    x = UserDict(input_ids=ids, attention_mask=torch.ones(3, 5))  # as a tokenizer's BatchEncoding
    torch.manual_seed(0)
    net = gfo.attach(Texts(), ["site"], "gflowout", x)
    assert torch.equal(gfo.predict(net, x), gfo.predict(net, dict(x)))
    gfo.fit(net, (x, Y), epochs=1, progress=False, device="cpu")
    rows = DataLoader([({k: v[i] for k, v in x.items()}, Y[i]) for i in range(3)], batch_size=3)
    gfo.fit(net, rows, epochs=1, progress=False, device="cpu")


@pytest.mark.parametrize(
    ("outputs", "how", "message"),
    [
        (lambda a: {"hidden": a, "scores": a}, {}, "has 'hidden', 'scores'; say where .* output="),
        (lambda a: {"hidden": a, "scores": a}, {"output": "logits"}, "has 'hidden', 'scores'"),
        (lambda a: (a, a), {}, "has 0, 1"),
        (lambda a: (a, a), {"output": 2}, "output=2, which has 0, 1"),
        (namedtuple("Scores", "scores aux"), {}, "has 'scores', 'aux'"),
    ],
)
def test_b19_the_keys_of_an_output_are_named(outputs, how, message):
    def wrap(module, args, out):
        return outputs(out, out) if isinstance(outputs, type) else outputs(out)

    model, sites = toy_model()
    model.register_forward_hook(wrap)
    with pytest.raises(ValueError, match=message) as error:
        gfo.attach(model, sites, "random", X, **how)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_b21_torchscript_beside_the_sites_is_no_matter():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    model = nn.Sequential(scripted, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    before = [m.training for m in model.modules()]
    with gfo.attach(model, ["2"], "gflowout", X) as net:
        gfo.fit(net, (X, Y), epochs=1, progress=False, device="cpu")
        masks = [torch.rand(20, 3, 5).round()]
        got = gfo.sample_logits(net, X, masks=masks)
        want = [gfo.masked_pass(net.eval(), X, masks=[z]).logits for z in masks[0]]
        torch.testing.assert_close(got, torch.stack(want))
    assert [m.training for m in model.modules()] == before
    for sites in (["0"], ["0.1"]):
        with pytest.raises(ValueError, match="is TorchScript, .*: choose a module outside it"):
            gfo.attach(model, sites, "random", X)


class LayerDrop(nn.Module):
    def __init__(self, skipped):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.out, self.skipped = nn.Linear(6, 3), skipped

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = x if self.training and i == self.skipped else torch.relu(layer(x))
        return self.out(x)


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_b22_a_model_that_skips_layers_is_told_so(skipped):
    net = gfo.attach(LayerDrop(skipped), "layers.*", "random", X)
    with pytest.raises(ValueError, match=f"'layers.{skipped}' .*skips layers.*LayerDrop") as error:
        gfo.fit(net, (X, Y), progress=False, device="cpu")
    assert "\n" not in str(error.value)


def test_b23_a_model_that_changed_can_be_detached():
    model, sites = toy_model()
    first = model.relu1
    modes = {name: m.training for name, m in model.eval().named_modules()}
    net = gfo.attach(model, sites, "random", X)
    net.train()
    parametrizations.weight_norm(model.fc1)
    model.out = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 7))
    model.relu1 = nn.Tanh()
    assert net.detach() is model
    assert not first._forward_hooks and not any(m._forward_hooks for m in model.modules())
    assert {n: m.training for n, m in model.named_modules() if n in modes} == modes
    with pytest.raises(KeyError, match="mine"), gfo.attach(*toy_model(), "random", X) as net:
        net.model.extra = nn.Linear(2, 2)
        raise KeyError("mine")


def test_b24_masks_come_off_without_the_net():
    model, sites = toy_model()
    model.eval()
    want = model(X)
    gfo.predict(gfo.attach(model, sites, "random", X).train(), X)
    twin = copy.deepcopy(model)
    for each in (model, twin):
        with pytest.raises(ValueError, match="call gfo.detach"):
            gfo.attach(each, sites, "random", X)
        assert gfo.detach(each) is each
        assert torch.equal(each(X), want) and not any(m.training for m in each.modules())
        assert not any(m._forward_hooks for m in each.modules())
        assert gfo.detach(each) is each  # a bare model stays as it is
    net = gfo.attach(model, sites, "random", X)
    assert gfo.detach(net) is model and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="detach takes a model"):
        gfo.detach("model")


def meta():
    with torch.device("meta"):
        return toy_model()[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda at: at(method=gfo.GFlowOut), "method is .*GFlowOut.*, needs to be an object"),
        (lambda at: at(method=None), "method is None, needs to be an object such as gfo.GFlowOut"),
        (lambda at: at(method=3), "method is 3, needs to be an object such as gfo.GFlowOut"),
        (lambda at: at(likelihood="categorical"), "likelihood is 'categorical', needs .* object"),
        (lambda at: at(likelihood=gfo.Categorical), "likelihood is <class .* object such as"),
        (lambda at: at(model=meta()), "'fc1.weight' is on the meta device: load weights"),
        (lambda at: at(model=nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))),
         "'0.weight' has no shape yet: run the lazy model once"),
        (lambda at: at(model=torch.relu), "model is a builtin.*, needs to be an nn.Module"),
    ],
)  # fmt: skip
def test_c_what_attach_is_given_is_checked(call, message):
    def at(model=None, method="random", likelihood=None):
        return gfo.attach(model or toy_model()[0], ["relu1"], method, X, likelihood=likelihood)

    with pytest.raises(ValueError, match=message) as error:
        call(at)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", math.nan), ("beta", math.inf), ("beta", -1.0), ("beta", "1"), ("beta", True),
        ("hidden", 0), ("hidden", 1.5), ("hidden", "8"), ("hidden", True), ("masks", 1.5),
        ("masks", 0), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "2"),
        ("random", math.nan), ("random", "0.1"), ("lam", math.nan), ("lam", "a"), ("keep", "0.5"),
        ("keep", math.nan), ("prior", "0.5"), ("prior", math.nan), ("label", "no"),
        ("rescale", 1), ("objective", 3), ("policy", None), ("prior_objective", 1),
    ],
)  # fmt: skip
def test_c_arguments_of_methods_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is '?{value}|not one of") as error:
        gfo.GFlowOut(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [partial(gfo.MCImproved, repeats=2.5), partial(gfo.EnsembleMember, members="3"),
     partial(gfo.ConcreteDropout, length_scale=math.nan), partial(gfo.RandomDropout, inverted="no"),
     partial(gfo.ContextualDropout, beta=math.nan), partial(gfo.IDGFlowOut, hidden=0)],
)  # fmt: skip
def test_c_arguments_of_every_method_are_checked(make):
    (name,) = make.keywords
    with pytest.raises(ValueError, match=f"^{name} is .*, needs to be"):
        make()


def test_a_model_that_ends_in_a_softmax_is_warned_of():
    """A softmax of its probabilities is a predictive that is never sure."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(1))
    with pytest.warns(UserWarning, match="ends in a softmax"):
        gfo.attach(model, ["1"], "random", torch.randn(4, 6))
    gfo.detach(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gfo.attach(model[:3], ["1"], "random", torch.randn(4, 6))


def ends_in(last):
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2), last)


@pytest.mark.parametrize("likelihood", [gfo.Bernoulli(), gfo.SoftTargets(), None])
def test_a_model_that_ends_in_a_sigmoid_is_warned_of(likelihood):
    """Its probabilities would be read as logits: no yes below 0.5."""
    x = torch.randn(4, 6)
    with pytest.warns(UserWarning, match="ends in a sigmoid: give the logits"):
        gfo.attach(ends_in(nn.Sigmoid()), ["1"], "random", x, likelihood=likelihood)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # logits that lie in [0, 1], and means that do by design
        gfo.attach(ends_in(nn.Hardtanh(0, 1)), ["1"], "random", x, likelihood=likelihood)
        for last in (nn.Sigmoid(), nn.Softmax(1)):
            gfo.attach(ends_in(last), ["1"], "random", x, likelihood=gfo.Gaussian(sd="learned"))


class Changes(nn.Module):
    """What a function makes of its input, with no weights."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_masks_and_likelihoods_need_floats(kind):
    """A mean mask made integers 0, and a generator read the real parts of complex numbers."""
    x, cast = torch.randn(4, 6), Changes(lambda h: h.to(kind))
    model = nn.Sequential(nn.Linear(6, 4), cast, Changes(torch.real), Changes(torch.Tensor.float))
    model.append(nn.Linear(4, 3))
    if kind == torch.int64:
        model[2] = nn.Identity()
    with pytest.raises(ValueError, match=f"site '1' returns {kind}, masks multiply floats"):
        gfo.attach(model, ["1"], "gflowout", x)
    model.append(cast)
    with pytest.raises(ValueError, match=rf"logits are \(4, 3\), {kind}: need floats"):
        gfo.attach(model, ["0"], "gflowout", x)
