"""The four models of the page *Put masks into your own model*, as they stand on the page."""

from collections import UserDict

import nbformat
import pytest
import torch
import torchvision
from torch import nn

import gfo
from book.tools import toc
from gfo.core.batch import Tokens, call, leaves, row_slice, token_mean

PAGE = toc.ROOT / "book" / "your_own_model.ipynb"


def from_the_page():
    """What the cells tagged "model" define."""
    cells = nbformat.read(PAGE, as_version=4).cells
    found = {"torch": torch, "nn": nn, "torchvision": torchvision}
    found |= {"Tokens": Tokens, "token_mean": token_mean}
    found["CNBlockConfig"] = torchvision.models.convnext.CNBlockConfig
    for cell in cells:
        if "model" in cell.metadata.get("tags", []):
            exec(cell.source, found)
    return found


def cases():
    """(name, model, sites, x, y, what else `attach` is told)"""
    page, gen = from_the_page(), torch.Generator().manual_seed(0)
    labels = torch.arange(24)
    x = torch.rand(24, 3, 16, 16, generator=gen)
    yield "torchvision", page["image_classifier"](), "features.*.block.5", x, labels % 10, {}
    ids = torch.randint(800, (24, 12), generator=gen)
    real = (torch.arange(12) < 3 + labels[:, None] % 10).long()
    x = UserDict(input_ids=ids, attention_mask=real)  # a mapping that is no dict
    yield "tokenizer", page["TextEncoder"](), ["site"], x, labels % 3, {"output": "logits"}
    x = torch.randn(24, 1, generator=gen)
    model, sites = gfo.models.regressor(inputs=1, hidden=(16, 16))
    yield "regressor", model, sites, x, x.sin(), {"likelihood": gfo.Gaussian()}
    x = torch.rand(24, 1, 16, 16, generator=gen)
    model, _ = gfo.models.unet(classes=3, width=4)
    yield "segmenter", model, ["middle"], x, (3 * x[:, 0]).long(), {}


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_masks_alone_learn_and_come_off_without_a_trace(case):
    _, model, sites, x, y, how = case
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        answer = call(model, x)
    net = gfo.attach(model, sites, gfo.GFlowOut(rescale=True), row_slice(x, 0, 2), **how)
    fresh = {name: value.clone() for name, value in net.method.state_dict().items()}
    assert type(call(net, x)) is type(answer)

    gfo.fit(net, (x, y), backbone=False, epochs=2, batch=12, lr={"masks": 0.1}, progress=False)
    assert any(not torch.equal(v, fresh[k]) for k, v in net.method.state_dict().items())
    mean, mixture = gfo.predict(net, x), gfo.predictive(net, x)
    torch.testing.assert_close(mean, mixture.mean, rtol=1e-5, atol=1e-6)  # float32
    if not net.likelihood.real:
        torch.testing.assert_close(mean.sum(1), torch.ones_like(mean[:, 0]), rtol=0, atol=1e-5)
    assert mixture.log_prob(y).isfinite().all()
    table = gfo.diagnose(net, x, y, samples=32)
    assert table["value"].notna().all() and table.loc["moved", "value"] >= 0

    assert net.detach() is model
    assert not any(module._forward_hooks for module in model.modules())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        again = call(model, x)
    for one, two in zip(leaves(answer), leaves(again), strict=True):
        assert torch.equal(one, two)
