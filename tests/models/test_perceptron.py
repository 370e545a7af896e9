"""The regression MLP: what its outputs are, and how wide."""

import pytest
import torch

import gfo
from gfo.core.registry import METHODS
from gfo.methods import create


@pytest.mark.parametrize("log_sd, outputs", [(True, 6), (False, 3)])
def test_a_regressor_has_two_outputs_per_target_or_one(log_sd, outputs):
    model, sites = gfo.models.build("regressor", inputs=5, targets=3, hidden=(7, 4), log_sd=log_sd)
    assert model(torch.randn(2, 5)).shape == (2, outputs) and sites == ["relu1", "relu2"]
    assert [m.out_features for m in model if isinstance(m, torch.nn.Linear)] == [7, 4, outputs]


@pytest.mark.parametrize("sd", ["network", "learned"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_a_curve_through_it(name, sd):
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(300, 1, generator=gen) * 4 - 2
    y = x.sin() + 0.1 * torch.randn(300, 1, generator=gen)
    torch.manual_seed(0)
    model, sites = gfo.models.regressor(inputs=1, hidden=(20, 20), log_sd=sd == "network")
    net = gfo.attach(model, sites, create(name), x[:2], likelihood=gfo.Gaussian(sd))
    gfo.fit(net, (x, y), (x, y), epochs=10, batch=50, progress=False, device="cpu",
            lr={"backbone": 0.01})  # fmt: skip
    assert (gfo.predict(net, x) - y).square().mean() < y.var() / 2
    assert gfo.predictive(net, x, 4).log_prob(y).isfinite().all()
