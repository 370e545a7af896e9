"""The three models of the page *Put masks into your own model*, taken from the page itself."""

import nbformat
import pytest
import torch
from torch import nn

import gfo
from book.tools import toc
from gfo.core.batch import call, leaves, row_slice

PAGE = toc.ROOT / "book" / "your_own_model.ipynb"


def from_the_page():
    """What the cells tagged "model" define."""
    cells = nbformat.read(PAGE, as_version=4).cells
    found = {"torch": torch, "nn": nn}
    for cell in cells:
        if "model" in cell.metadata.get("tags", []):
            exec(cell.source, found)
    return found


def cases():
    """(name, model, sites, x, labels, output)"""
    page, gen = from_the_page(), torch.Generator().manual_seed(0)
    x = torch.rand(24, 1, 8, 8, generator=gen)
    yield "image", page["image_classifier"](), ["8"], x, 10, None
    x = torch.randn(24, 30, generator=gen)
    yield "encoder", page["Tabular"](), "encoder.layers.*.dropout[12]", x, 2, None
    ids = torch.randint(800, (24, 12), generator=gen)
    x = {"input_ids": ids, "attention_mask": (torch.rand(24, 12, generator=gen) < 0.8).long()}
    yield "dict", page["TextClassifier"](), ["pooler"], x, 3, "logits"


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[c[0] for c in CASES])
def test_masks_alone_learn_and_come_off_without_a_trace(case):
    _, model, sites, x, classes, output = case
    model.eval()
    y = torch.arange(24) % classes
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        answer = call(model, x)
    net = gfo.attach(model, sites, gfo.GFlowOut(rescale=True), row_slice(x, 0, 2), output=output)
    fresh = {name: value.clone() for name, value in net.method.state_dict().items()}
    assert type(call(net, x)) is type(answer)

    gfo.fit(net, (x, y), backbone=False, epochs=2, batch=12, lr={"masks": 0.1}, progress=False)
    assert any(not torch.equal(v, fresh[k]) for k, v in net.method.state_dict().items())
    probs = gfo.predict(net, x)
    torch.testing.assert_close(probs.sum(1), torch.ones(24), rtol=0, atol=1e-5)  # float32
    assert probs.shape == (24, classes)
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
