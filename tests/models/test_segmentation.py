"""The U-Net: what its blocks read, what a mask on one does, and every method on it."""

import copy
import math

import pytest
import torch
from torch import nn

import gfo
from gfo.core.registry import METHODS
from gfo.methods import create
from gfo.methods.consumers import find_consumers
from gfo.models.segmentation import DoubleConv

SMALL = dict(channels=2, classes=3, width=4, depth=2)
SITES = ["down.0", "down.1", "middle", "up.0", "up.1"]


class Pooled(nn.Module):
    """A U-Net's logits, averaged over the pixels."""

    def __init__(self):
        super().__init__()
        self.net, _ = gfo.models.unet(**SMALL)
        self.consumers = {f"net.{site}": f"net.{conv}" for site, conv in self.net.consumers.items()}

    def forward(self, image):
        return self.net(image).mean((2, 3))


def small(name="random"):
    torch.manual_seed(0)
    sites = [f"net.{site}" for site in SITES]
    return gfo.attach(Pooled(), sites, create(name), torch.randn(2, 2, 8, 8))


def images(n=32, size=8):
    x = torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(1))
    return x, (x.mean((1, 2, 3)) > 0).long()


def warm(model, x):
    """BatchNorm statistics and scales of their own, as after training."""
    model.train()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-0.5, 0.5)
                part.momentum = 1.0
        model(x)
    return model.eval()


@pytest.mark.parametrize("size", [(8, 8), (13, 9), (4, 7)])
def test_logits_are_as_large_as_the_image_whatever_its_size(size):
    model, sites = gfo.models.build("unet", **SMALL)
    assert sites == SITES == [n for n, m in model.named_modules() if isinstance(m, DoubleConv)]
    assert model(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def test_the_network_is_written_out():
    torch.manual_seed(0)
    model, x = gfo.models.unet(**SMALL)[0], torch.randn(2, 2, 8, 8)
    model = warm(model, x)
    top = model.down[0](x)
    deep = model.down[1](nn.functional.max_pool2d(top, 2))
    low = model.middle(nn.functional.max_pool2d(deep, 2))

    def doubled(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    up = model.up[0](torch.cat([deep, doubled(low)], 1))
    up = model.up[1](torch.cat([top, doubled(up)], 1))
    torch.testing.assert_close(model(x), model.out(up))
    block = model.middle
    h = torch.relu(block.bn1(block.conv1(nn.functional.max_pool2d(deep, 2))))
    torch.testing.assert_close(low, torch.relu(block.bn2(block.conv2(h))))
    assert [site.width for site in small().sites] == [4, 8, 16, 8, 4]


@pytest.mark.parametrize("layer", range(5))
def test_a_mask_drops_channels_of_a_block_on_its_way_down_and_over_the_shortcut(layer):
    """As if its last convolution and BatchNorm made them 0, so concrete dropout weighs that."""
    net, (x, _) = small("concrete"), images(4)
    model = warm(net.model, x).net
    site = net.sites[layer]
    keep = torch.arange(site.width).remainder(2).float()
    masks = [torch.ones(1, 4, s.width) for s in net.sites]
    masks[layer] = keep.expand(1, 4, -1)
    got, ones = (
        gfo.sample_logits(net.eval(), x, masks=z)[0]
        for z in (masks, [torch.ones_like(m) for m in masks])
    )
    block = copy.deepcopy(model)
    target = block.get_submodule(SITES[layer])
    with torch.no_grad():
        target.conv2.weight *= keep[:, None, None, None]
        target.bn2.bias *= keep
        target.bn2.running_mean *= keep
        torch.testing.assert_close(got, block(x).mean((2, 3)))
        torch.testing.assert_close(ones, model(x).mean((2, 3)))
    assert not torch.allclose(got, ones)
    assert net.method.readers[layer] is model.get_submodule(f"{SITES[layer]}.conv2")


def test_a_bare_unet_tells_concrete_dropout_which_weights_a_mask_multiplies():
    model, sites = gfo.models.unet(**SMALL)
    spec = small().spec
    spec = spec._replace(
        sites=tuple(s._replace(name=name) for s, name in zip(spec.sites, sites, strict=True))
    )
    found = find_consumers(model, spec, {})
    assert list(found) == [model.get_submodule(f"{site}.conv2") for site in sites]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_saves_and_predicts_on_it(name, tmp_path):
    net, data = small(name), images()
    history = gfo.fit(net, data, data, epochs=2, batch=16, progress=False, device="cpu")
    assert history.notna().all().all()
    gfo.save(net, tmp_path / "net.pt")
    again = gfo.load(tmp_path / "net.pt", Pooled())
    want = gfo.predict(net, data[0], 4)
    assert torch.equal(want, gfo.predict(again, data[0], 4))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_a_class_per_pixel(name):
    x = torch.randn(48, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    net = gfo.attach(*gfo.models.unet(**SMALL | {"classes": 2}), create(name), x[:2])
    how = dict(batch=16, progress=False, device="cpu", lr={"backbone": 0.02})
    valid = gfo.fit(net, (x, y), (x, y), epochs=8, **how)["valid_nll"]
    probs = gfo.predict(net, x, 4)
    assert probs.shape == (48, 2, 12, 12)
    torch.testing.assert_close(probs.sum(1), torch.ones(48, 12, 12))
    assert valid.min() < 0.95 * 144 * math.log(2)  # chance, in nats per image


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gfo.models.unet(depth=3)[0](torch.randn(1, 1, 8, 7)), "halves them down from 8"),
        (lambda: gfo.models.unet(depth=0), "depth is 0, needs to be at least 1"),
        (lambda: gfo.models.unet(width=0), "width is 0, needs to be at least 1"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
