"""The ResNet-18 for CIFAR, its sites, and BatchNorm under the masks of the test."""

import copy

import pytest
import torch
from conftest import shake
from torch import nn

import gfo
from gfo.core.masked_pass import masked_pass, noise_for
from gfo.core.noise import generator
from gfo.core.registry import METHODS
from gfo.data import crop_flip
from gfo.methods import create
from gfo.methods.consumers import find_consumers
from gfo.train.batchnorm import reestimate

SMALL = dict(classes=4, width=4, blocks=(1, 1))


def small(method="gflowout", order="conv-bn", **how):
    torch.manual_seed(0)
    model, sites = gfo.models.resnet18(**SMALL, order=order)
    return gfo.attach(model, sites, create(method, **how), torch.randn(2, 3, 8, 8))


def images(n=48, gen=None):
    gen = gen or torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=gen), torch.arange(n) % 4


def test_at_full_width_it_is_torchvisions_resnet_behind_another_stem():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours, sites = gfo.models.resnet18()
    theirs = resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())  # names and shapes agree
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert sites == [f"layer{stage}.{i}.bn2" for stage in range(1, 5) for i in range(2)]
    assert sum(p.numel() for p in ours.parameters()) == 11_173_962


def test_mask_networks_hold_at_most_a_twentieth_of_the_backbones_weights():
    from gfo_lab.experiments.cifar import SETTINGS

    model, sites = gfo.models.resnet18()
    backbone = sum(p.numel() for p in model.parameters())
    spec = gfo.attach(model, sites, "random", torch.randn(2, 3, 32, 32)).spec
    for name in METHODS:
        method = create(name, **SETTINGS.get(name, {}))
        method.build(spec, model)
        assert sum(p.numel() for p in method.parameters()) <= 0.05 * backbone, name


@pytest.mark.parametrize("order", ["conv-bn", "bn-conv"])
def test_a_mask_acts_on_channels_of_the_branch_before_the_shortcut(order):
    net = small("random", order).eval()
    model, x = copy.deepcopy(net).detach().eval(), images(2)[0]
    empty = [torch.zeros(1, 2, site.width) for site in net.sites]
    assert [site.width for site in net.sites] == [4, 8]
    got = gfo.sample_logits(net, x, masks=empty)[0]
    with torch.no_grad():
        h = model.relu(model.bn1(model.conv1(x))) if order == "conv-bn" else model.conv1(x)
        for layer in (model.layer1[0], model.layer2[0]):  # shortcuts alone
            if order == "conv-bn":
                h = torch.relu(h if layer.downsample is None else layer.downsample(h))
            else:
                h = layer.shortcut(h)
        h = h if order == "conv-bn" else model.relu(model.bn1(h))
        want = model.fc(h.mean((2, 3)))
    torch.testing.assert_close(got, want)
    ones = [torch.ones(1, 2, site.width) for site in net.sites]
    with torch.no_grad():
        torch.testing.assert_close(gfo.sample_logits(net, x, masks=ones)[0], model(x))


def test_the_pre_activation_block_is_written_out():
    torch.manual_seed(0)
    model, _ = gfo.models.resnet18(**SMALL, order="bn-conv")
    block, x = model.layer2[0].eval(), torch.randn(2, 4, 8, 8)
    branch = nn.Sequential(block.bn1, nn.ReLU(), block.conv1, block.bn2, nn.ReLU(), block.conv2)
    torch.testing.assert_close(block(x), branch(x) + block.shortcut(x))


@pytest.mark.parametrize("order", ["conv-bn", "bn-conv"])
def test_concrete_dropout_weighs_the_convolution_whose_channels_are_masked(order):
    model, sites = gfo.models.resnet18(**SMALL, order=order)
    net = gfo.attach(model, sites, "concrete", torch.randn(2, 3, 8, 8))
    assert [
        m is model.get_submodule(f"layer{i}.0.conv2") for i, m in enumerate(net.method.readers, 1)
    ] == [True] * 2
    spec = net.spec
    other = find_consumers(model, spec, {sites[0]: "fc"})
    assert other[0] is model.fc and other[1] is model.layer2[0].conv2
    if order == "conv-bn":  # masking channel k of bn2 is masking row k of conv2, with bn2's shift
        x, keep = images(2)[0], torch.tensor([1.0, 0.0, 1.0, 0.0])
        masks = [keep.expand(1, 2, 4), torch.ones(1, 2, 8)]
        got = gfo.sample_logits(net.eval(), x, masks=masks)[0]
        with torch.no_grad():
            conv2, bn2 = model.layer1[0].conv2, model.layer1[0].bn2
            conv2.weight *= keep[:, None, None, None]
            bn2.bias *= keep
            bn2.running_mean *= keep
            ones = [torch.ones(1, 2, site.width) for site in net.sites]
            torch.testing.assert_close(gfo.sample_logits(net, x, masks=ones)[0], got)


@pytest.mark.parametrize("width", [3, 4, 8, 16])
def test_the_strided_shortcut_is_torchs_convolution_and_wide_ones_are_torchs_own(width):
    module = gfo.models.resnet18(width=width, blocks=(1, 1))[0].layer2[0].downsample[0]
    assert (type(module) is nn.Conv2d) is (width >= 16)
    module.double()
    x = torch.randn(4, width, 8, 8, dtype=torch.float64).to(memory_format=torch.channels_last)
    got, weight = module(x), module.weight
    want = nn.functional.conv2d(x.contiguous(), weight, stride=2)
    torch.testing.assert_close(got, want)
    (one,), (other,) = (torch.autograd.grad(t.square().sum(), weight) for t in (got, want))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_saves_and_predicts_on_it(name, tmp_path):
    net, data = small(name), images()
    history = gfo.fit(
        net, data, data, epochs=2, batch=16, progress=False, schedule="one-cycle", augment=crop_flip
    )
    assert history.notna().all().all()
    gfo.save(net, tmp_path / "net.pt")
    again = gfo.load(tmp_path / "net.pt", gfo.models.resnet18(**SMALL)[0])
    want = gfo.predict(net, data[0], 4)
    assert torch.equal(want, gfo.predict(again, data[0], 4))


def test_bad_networks_are_named(tmp_path):
    net = small()
    gfo.save(net, tmp_path / "net.pt")
    wide, _ = gfo.models.resnet18(classes=4, width=8, blocks=(1, 1))
    for call, message in (
        (lambda: gfo.models.resnet18(order="conv"), "order is 'conv'"),
        (lambda: gfo.models.resnet18(width=0), "width 0"),
        (lambda: gfo.models.resnet18(blocks=()), "blocks"),
        (
            lambda: gfo.load(tmp_path / "net.pt", wide),
            "holds another architecture: model.conv1.weight is",
        ),
        (lambda: gfo.predict(net, torch.randn(2, 4, 9, 9)), r"x has shape \(2, 4, 9, 9\)"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_reestimated_statistics_are_the_mean_over_batches_under_test_masks():
    net, (x, _) = shake(small()).train(), images()
    want_mean, want_var = [], []

    def see(module, args):
        h = args[0].detach()
        want_mean.append(h.mean((0, 2, 3)))
        want_var.append(h.var((0, 2, 3)))

    bn, weights = net.model.layer2[0].bn1, [p.clone() for p in net.parameters()]
    handle = bn.register_forward_pre_hook(see)
    reestimate(net, x, batch=16, seed=4)
    handle.remove()
    assert len(want_mean) == 3
    torch.testing.assert_close(bn.running_mean, torch.stack(want_mean).mean(0))
    torch.testing.assert_close(bn.running_var, torch.stack(want_var).mean(0))
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert net.training and bn.momentum == 0.1 and bn.training
    # by hand: the first batch under the masks that p draws from the same noise
    noise = noise_for(net, 16, generator(4, "batchnorm", 0))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        handle = twin.model.layer2[0].bn1.register_forward_pre_hook(see)
        masked_pass(twin, x[:16], noise=noise, source="test")
    torch.testing.assert_close(want_mean[-1], want_mean[0])


def test_reestimation_that_is_interrupted_leaves_all_as_it_was():
    net, (x, _) = shake(small()).eval(), images()
    before = {k: v.clone() for k, v in net.state_dict().items()}

    def interrupted(x, gen):
        if interrupted.calls:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return x

    interrupted.calls = 0
    with pytest.raises(KeyboardInterrupt):
        reestimate(net, x, batch=16, augment=interrupted)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert {m.momentum for m in net.modules() if hasattr(m, "momentum")} == {0.1}


def test_a_dropout_of_the_backbones_own_is_off_in_reestimation_as_it_is_in_a_test():
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3))
    x = torch.randn(512, 6)
    net = gfo.attach(own, ["2"], "random", x[:2])
    reestimate(net, x, batch=512)
    torch.testing.assert_close(own[2].running_var, own[0](x).var(0), rtol=1e-4, atol=1e-6)


def test_reestimation_is_repeatable_and_does_nothing_without_batchnorm(toy):
    net, (x, _) = shake(small()).eval(), images()
    reestimate(net, x, augment=crop_flip, seed=1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    reestimate(net, x, augment=crop_flip, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    mlp, x, _ = toy
    before = {k: v.clone() for k, v in mlp.state_dict().items()}
    reestimate(mlp, x)
    assert all(torch.equal(v, before[k]) for k, v in mlp.state_dict().items())
