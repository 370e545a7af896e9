"""Shared small networks. One torch thread: two pytest workers share two cores."""

import gc
from itertools import product

import pytest
import torch
from torch import nn

import gfo
from gfo.core.noise import derive

torch.set_num_threads(1)
gc.set_threshold(100_000, 50, 100)  # Python's 700 new objects cost a tenth of the time

UNITS = (4, 3)  # 2^7 masks: enumerable in a blink


def toy_model(units=UNITS, inputs=6, classes=3):
    return gfo.models.mlp(inputs=inputs, classes=classes, hidden=units)


def all_masks(widths):
    """Every mask of a network with these site widths: one (2^M, C) tensor a site."""
    bits = torch.tensor(list(product((0.0, 1.0), repeat=sum(widths))))
    return list(bits.split(list(widths), dim=1))


def member_seeds(count, seed=0):
    """What masks of an ensemble's members come from: each has its own."""
    return [seed, *(derive(seed, "member", k) for k in range(1, count))]


def shake(net, scale=0.4, seed=5):
    """Give every mask network weights that matter: fresh ones start as dropout 0.5."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.method.parameters():
            p.add_(scale * torch.randn(p.shape, generator=gen))
    return net


@pytest.fixture
def toy():
    """(net, x, y): a GFlowOut MLP with shaken mask networks and 8 inputs."""
    torch.manual_seed(0)
    model, sites = toy_model()
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    return shake(gfo.attach(model, sites, gfo.GFlowOut(), x)), x, y


class Net(nn.Module):
    """A small image network with BatchNorm and a shortcut past the first site."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        h = self.stem(x)
        h = torch.relu(h + self.bn(self.conv(h)))
        return self.out(h.mean((2, 3)))
