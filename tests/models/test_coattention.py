"""MCAN: its size, its sites, and padding that counts nowhere."""

import pytest
import torch
from conftest import shake
from torch.testing import assert_close

import gfo
from gfo.core.masked_pass import BatchPass
from gfo.evaluate.masks import policy_divergences
from gfo.methods import create
from gfo.models.coattention import producers

METHODS = tuple(gfo.methods.METHODS)
Q, V = 4, 3  # words and image tokens without padding
SIZES = dict(words=9, classes=5, features=6, layers=2, width=4, heads=2, longest=8)


def inputs(batch=3):
    torch.manual_seed(1)
    words = torch.randint(1, 9, (batch, Q))
    words[0, 2:] = 0  # questions of unequal length
    return torch.randn(batch, V, 6), words


def padded(x, tokens=2, words=2):
    image, question = x
    return (
        torch.cat([image, image.new_zeros(len(image), tokens, 6)], 1),
        torch.cat([question, question.new_zeros(len(question), words)], 1),
    )


def make(name="gflowout", embedding=0):
    torch.manual_seed(0)
    model, sites = gfo.models.mcan(**SIZES, embedding=embedding)
    config = dict(consumers=producers(model)) if name == "concrete" else {}
    return shake(gfo.attach(model, sites, create(name, **config), padded(inputs())))


def cut(masks):
    """Masks of a padded batch without its padding: four encoder sites, then six of the decoder."""
    return [z[:, : Q if layer < 4 else V] for layer, z in enumerate(masks)]


@pytest.mark.parametrize("name", METHODS)
def test_padding_changes_no_loss_and_no_gradient(name):
    """Noise comes by position, so both batches draw the same masks for real tokens."""
    y = torch.tensor([0, 3, 1])
    found = []
    for x in (inputs(), padded(inputs())):
        net = make(name)
        loss = net.method.loss(BatchPass(net, x, y, (0, "step", 0, 0)), 10)
        sum(loss.parts.values()).backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        found.append((loss.parts, dict(loss.info), grads))
    close = dict(rtol=1e-4, atol=1e-5)  # float32; tb is a square of sums over a hundred bits
    for one, other in zip(*found, strict=True):
        assert_close(other, one, **close)


@pytest.mark.parametrize(
    "name, embedding", [("gflowout", 0), ("gflowout", 5), ("id-gflowout", 0), ("concrete", 0)]
)
def test_padding_changes_no_score_and_no_prediction(name, embedding):
    net, y = make(name, embedding), torch.tensor([0, 3, 1])
    x, long = inputs(), padded(inputs())
    masks = gfo.sample(net, long, y, seed=0)
    short = gfo.score(net, x, y, cut(masks))
    for one, other in zip(gfo.score(net, long, y, masks), short, strict=True):
        assert (one is None and other is None) or torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    given, given_short = ([z[None] for z in some] for some in (masks, cut(masks)))
    assert_close(gfo.predict(net, long, masks=given), gfo.predict(net, x, masks=given_short))
    assert_close(gfo.predict(net, long), gfo.predict(net, x))
    assert_close(
        policy_divergences(net, long, y), policy_divergences(net, x, y), rtol=1e-4, atol=1e-5
    )
    with torch.no_grad():
        assert_close(net(*long), net(*x))
    assert all((z[0, 2:] == 1).all() for z in masks[:4]) or net.method.shared
    masks = [z.clone() for z in masks]
    masks[0][:, Q:] = 0  # a mask of padding says nothing
    masks[5][:, V:] = 0
    for one, other in zip(gfo.score(net, long, y, masks), short, strict=True):
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_probabilities_of_all_masks_of_real_tokens_sum_to_one():
    torch.manual_seed(0)
    model, sites = gfo.models.mcan(
        words=3, classes=2, features=2, layers=1, width=2, heads=1, longest=3
    )
    x = (torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]), torch.tensor([[1, 0, 0]]))
    net = shake(gfo.attach(model, sites, "gflowout", x))
    assert [s.tokens for s in net.sites] == [3, 3, 2, 2, 2]  # one of each is real
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 10)  # (1024, 10)
    masks = [torch.ones(1024, s.tokens, 2) for s in net.sites]
    for site, two in zip(masks, bits.split(2, 1), strict=True):
        site[:, 0] = two
    rows = tuple(t.expand(1024, *t.shape[1:]) for t in x)
    found = gfo.score(net, rows, torch.ones(1024, dtype=torch.long), masks)
    assert found.log_q.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert found.log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert len(set(found.log_q.tolist())) > 500  # shaken: not coins


def test_earlier_masks_are_read_token_by_token_or_as_their_mean():
    """What q reads at the decoder's first site and its second: 4 sites of words before."""
    net, x = make(), inputs()
    masks = [torch.randint(2, (3, Q if i < 4 else V, 4)).float() for i in range(10)]
    reads = []
    for layer in (4, 5):
        net.method.q.nets[layer].register_forward_pre_hook(lambda m, a: reads.append(a[0]))
    gfo.score(net, x, torch.zeros(3, dtype=torch.long), masks)
    at4, at5 = reads
    real = (x[1] != 0).float()[..., None]
    means = torch.cat([(z * real).sum(1) / real.sum(1) for z in masks[:4]], 1)
    h, earlier = at4[..., :4], at4[..., 4:20]
    assert h.shape == (3, V, 4)
    assert_close(earlier, means[:, None].expand(-1, V, -1))
    assert_close(at5[..., 20:24], masks[4])  # then y


def test_the_public_functions_take_a_pair():
    net, x, y = make(), inputs(40), torch.arange(40) % 5
    gfo.fit(net, (x, y), (x, y), epochs=1, batch=16, samples=2, progress=False, device="cpu")
    assert gfo.predict(net, x).shape == (40, 5)
    table = gfo.diagnose(net, tuple(t[:4] for t in x), y[:4], samples=32)
    assert table["value"].notna().all()
    masks = [
        torch.stack([a, b]) for a, b in zip(gfo.sample(net, x), gfo.sample(net, x), strict=True)
    ]
    one_by_one = [gfo.sample_logits(net, x, masks=[z[s : s + 1] for z in masks]) for s in (0, 1)]
    assert_close(gfo.sample_logits(net, x, masks=masks), torch.cat(one_by_one))


# --- the paper's size

PAPER = dict(words=20_573, classes=3129, features=2048, layers=6, width=512, heads=8, embedding=300)


def test_the_papers_size_has_the_parameters_of_a_hand_count_and_takes_a_masked_step():
    attention = 4 * (512 * 512 + 512)  # queries, keys, values, output
    feed = 512 * 2048 + 2048 + 2048 * 512 + 512
    norm = 2 * 512
    encoder = 6 * (attention + feed + 2 * norm)
    decoder = 6 * (2 * attention + feed + 3 * norm)
    words = 20_573 * 300 + 4 * 512 * (300 + 512 + 2)  # embedding; four gates, two biases
    image = 2048 * 512 + 512
    reduce = 512 * 512 + 512 + 512 + 1 + 512 * 1024 + 1024
    answer = 2 * 1024 + 1024 * 3129 + 3129
    by_hand = encoder + decoder + words + image + 2 * reduce + answer
    torch.manual_seed(0)
    model, sites = gfo.models.mcan(**PAPER)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(by_hand, rel=0.01)
    assert len(sites) == 6 * 2 + 6 * 3
    x = (torch.randn(2, 4, 2048), torch.randint(1, 20_573, (2, 3)))
    y = torch.zeros(2, 3129)
    y[:, 7] = 0.9
    net = gfo.attach(model, sites, "gflowout", x, likelihood=gfo.SoftTargets())
    loss = net.method.loss(BatchPass(net, x, y, (0,)), 100)
    sum(loss.parts.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert {s.width for s in net.sites} == {512}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda net: gfo.predict(net, (torch.randn(3, 3, 7), inputs()[1])), "7 wide, not 6"),
        (lambda net: gfo.predict(net, (inputs()[0], torch.ones(3, 9).long())), "have 9 tokens"),
        (lambda net: gfo.models.mcan(width=6, heads=4), "multiple of heads"),
        (lambda net: gfo.predict(net, padded(inputs(), tokens=3)), "6 tokens, the example had 5"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(make())
    assert "\n" not in str(error.value)
