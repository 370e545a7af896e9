"""The live views of the tiny network: what they show in a browser without network is what torch
computes, and a keyboard moves it."""

import itertools
import json
import re

import pytest
import torch
from browser import CHROMIUM, Browser
from gfo_lab import live
from sklearn.datasets import load_iris

from book.tools import toc
from gfo.audit import exact, layerwise_optimum, toys

VIEWS = ("posterior", "bound", "flow", "policy")
PRIOR = torch.full((16,), 1 / 16, dtype=torch.float64).log()
WIDTHS = (2, 2)
CLOSE = 1e-4  # the data are rounded to six digits
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35}
no_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def tiny() -> toys.Toy:
    return toys.toy((2, 2), points=40, seed=1)


@pytest.fixture(scope="module")
def data(tiny) -> dict:
    return live.examples(tiny)


@pytest.fixture(scope="module")
def log_lik(tiny) -> torch.Tensor:
    """log p(y|x,z) of the examples shown and of all masks, straight from the network."""
    points = live.ABOUT["points"]
    x, y, rows = tiny.x[points], tiny.y[points], []
    layers = [tiny.model.get_submodule(site) for site in tiny.sites]
    for masks in zip(*exact.all_masks(WIDTHS), strict=True):
        hooks = [
            layer.register_forward_hook(lambda _, __, out, mask=mask: out * mask)
            for layer, mask in zip(layers, masks, strict=True)
        ]
        rows.append(tiny.model(x).log_softmax(1)[range(len(y)), y])
        for hook in hooks:
            hook.remove()
    return torch.stack(rows, 1).double()


def test_the_data_are_the_networks_and_the_flowers_those_of_iris(data, log_lik):
    near(data["log_lik"], log_lik)
    iris = load_iris()
    rows = {
        live.ABOUT["name"].format(iris.target_names[kind], *size)
        for size, kind in zip(iris.data, iris.target, strict=True)
    }
    assert set(data["names"]) <= rows and len(set(data["names"])) == len(data["names"]) == 6
    assert {iris.target_names[k] for k in data["labels"]} == set(iris.target_names)


@pytest.mark.parametrize("view", VIEWS)
def test_who_has_no_script_reads_the_first_numbers(view, data, log_lik):
    page = live.show(view, **data).data
    text = re.search(r'class="live-static">(.*?)</p>', page)[1]
    assert text.startswith(data["names"][0])
    posterior, evidence = exact.log_posterior(log_lik[0], PRIOR)
    gap = exact.kl(PRIOR, posterior)
    (q,), _ = layerwise_optimum.best_layerwise(posterior[None], WIDTHS)
    most = f"{float(posterior.exp().max()):.1%}"
    told = {
        "posterior": [f"{float(evidence.exp()):.3f}", most],
        "bound": [f"{float(v):.3f}" for v in (evidence - gap, gap, evidence)],
        "flow": [f"{float(evidence):.3f}", most],
        "policy": [f"{float(-(q.exp() * q).sum()):.3f}"],
    }
    assert all(number in text for number in told[view])
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "") and "https:" not in page


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_fills_and_numbers_stand_out_on_both_pages():
    css = (toc.ROOT / "book/gfo_lab/live.css").read_text("utf-8")
    fills = re.findall(r"--live-(?:blue|orange|green): (#\w{6})", css)
    assert len(fills) == 3
    for paper in ("#ffffff", "#14181e"):  # the theme's
        assert min(contrast(fill, paper) for fill in fills) >= 3
    heats = re.findall(r"--live-heat: (\d+) (\d+) (\d+);\s*--live-on-heat: #(\w{3});", css)
    assert len(heats) == 2
    for *heat, ink in heats:
        full = "#" + "".join(f"{int(part):02x}" for part in heat)
        assert contrast(full, "#" + "".join(2 * c for c in ink)) >= 4.5


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


class Reader:
    """Somebody in front of one view, with a keyboard."""

    def __init__(self, browser: Browser, view: str):
        self.browser, self.root = browser, f"document.querySelector('[data-view={view}]')"

    def numbers(self, name: str) -> torch.Tensor:
        """All numbers of that name in the view, in the order of the page."""
        found = self.browser.run(
            f"[...{self.root}.querySelectorAll('[data-name={name}]')].map(e => +e.dataset.value)"
        )
        return torch.tensor(found, dtype=torch.float64)

    def number(self, name: str) -> float:
        (found,) = self.numbers(name)
        return float(found)

    def press(self, selector: str, key: str, times: int = 1) -> None:
        """Go to a control and press a key."""
        self.browser.run(f"{self.root}.querySelectorAll({json.dumps(selector)})[0].focus()")
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                how = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
                self.browser.call("Input.dispatchKeyEvent", type=kind, **how)

    def click(self, text: str) -> None:
        """Press a button, by what is on it."""
        every = f"[...{self.root}.querySelectorAll('button')]"
        self.browser.run(f"{every}.find(b => b.textContent === {json.dumps(text)}).click()")

    def says(self) -> str:
        return self.browser.run(f"{self.root}.querySelector('[role=status]').textContent")


@pytest.fixture
def page(browser, data, tmp_path):
    """Opens all four views on one page, as wide as a phone, without motion or with it."""

    def opened(view: str = "posterior", motion: str = "reduce", twice: bool = False) -> Reader:
        views = VIEWS * (2 if twice else 1)
        body = "".join(live.show(one, **data).data for one in views)
        path = tmp_path / "live.html"
        path.write_text(f"<!doctype html><meta charset='utf-8'>{body}", encoding="utf-8")
        browser.resize(390)
        feature = {"name": "prefers-reduced-motion", "value": motion}
        browser.call("Emulation.setEmulatedMedia", features=[feature])
        browser.open(path.as_uri())
        return Reader(browser, view)

    return opened


def near(found, expected) -> None:
    found, expected = (torch.as_tensor(value).double() for value in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.browser
@no_chromium
def test_posterior_is_bayes_rule_for_every_example_and_mask(page, log_lik):
    reader = page("posterior")
    heard = set()
    for example in range(len(log_lik)):
        posterior, evidence = exact.log_posterior(log_lik[example], PRIOR)
        near(reader.numbers("prior"), PRIOR.exp())
        near(reader.numbers("posterior"), posterior.exp())
        near(reader.number("evidence"), evidence.exp())
        heard.add(reader.says())
        reader.press("select", "ArrowDown")
    assert len(heard) == len(log_lik)
    start = reader.browser.run("+document.querySelector('[type=radio]:checked').value")
    for step in range(1, 17):  # arrow keys walk over all masks, and round
        reader.press("[type=radio]:checked", "ArrowRight")
        mask = (start + step) % 16
        near(reader.number("likelihood"), log_lik[-1][mask].exp())
        near(reader.number("ratio"), (log_lik[-1][mask] - evidence).exp())
        off = reader.browser.run(f"{reader.root}.querySelectorAll('circle.live-off').length")
        assert off == 4 - mask.bit_count()


@pytest.mark.browser
@no_chromium
def test_elbo_and_kl_make_the_evidence_whatever_the_sliders_say(page, log_lik):
    reader = page("bound")
    wide = "[...document.querySelectorAll('.live-stack span')].map(e => parseFloat(e.style.width))"
    for example in (0, 1):
        posterior, evidence = exact.log_posterior(log_lik[example], PRIOR)
        lengths = []
        for unit, key in itertools.product(range(4), ("ArrowRight", "ArrowLeft", "End")):
            before = reader.numbers("keep")
            row = f".live-slider:nth-of-type({unit + 2}) input"
            reader.press(row, key)
            keep = reader.numbers("keep")
            step = {"ArrowRight": 0.01, "ArrowLeft": -0.01}.get(key, 0.95 - float(before[unit]))
            near(keep[unit], before[unit] + step)
            bits = torch.cat(exact.all_masks(WIDTHS), 1).double()
            q = (bits * keep + (1 - bits) * (1 - keep)).prod(1)
            gap = exact.kl(q.log(), posterior)
            near(reader.numbers("q"), q)
            near(reader.number("kl"), gap)
            near(reader.number("elbo"), evidence - gap)
            near(reader.number("log_evidence"), evidence)
            lengths.append(sum(reader.browser.run(wide)))
        assert max(lengths) - min(lengths) < 1e-3 and 50 < lengths[0] < 100
        reader.click("Climb to the best factorised q")
        (best,), spread = layerwise_optimum.best_layerwise(posterior[None], (4,))
        assert spread < CLOSE  # there is one optimum
        near(reader.number("kl"), exact.kl(best, posterior))
        near(reader.numbers("q"), best.exp())
        reader.click("Back to the prior")
        near(reader.numbers("keep"), torch.full((4,), 0.5))
        reader.press("select", "ArrowDown")


@pytest.mark.browser
@no_chromium
def test_the_climb_can_be_watched_and_stopped(page, log_lik):
    reader = page("bound", motion="no-preference")
    reader.click("Climb to the best factorised q")
    best = layerwise_optimum.best_layerwise((log_lik[:1] + PRIOR).log_softmax(1), (4,))[0]
    gap = float(exact.kl(best, (log_lik[:1] + PRIOR).log_softmax(1)))
    assert reader.number("kl") > gap + 0.001  # the first of many steps
    where = f"{reader.root}.querySelector('[data-name=kl]').dataset.value"
    reader.browser.wait(f"{where} < {gap + 1e-6}")
    reader.click("Back to the prior")
    reader.click("Climb to the best factorised q")
    reader.press(".live-slider input", "ArrowRight")
    kept = reader.numbers("keep")
    reader.browser.run("new Promise(done => setTimeout(done, 500))")
    assert torch.equal(reader.numbers("keep"), kept)


@pytest.mark.browser
@no_chromium
def test_residuals_are_log_z_plus_log_q_minus_log_r(page, log_lik):
    reader = page("flow")
    log_r = log_lik[0] + PRIOR
    posterior, evidence = exact.log_posterior(log_lik[0], PRIOR)
    near(reader.numbers("residual"), torch.zeros(16).double())
    reader.press(".live-slider input", "ArrowRight", times=4)
    near(reader.number("log_z"), evidence + 0.2)
    near(reader.numbers("residual"), torch.full((16,), 0.2).double())
    near(reader.numbers("inflow")[0], (evidence + 0.2).exp())
    reader.click("Exact")
    near(reader.numbers("residual"), torch.zeros(16).double())
    # a keep-probability of layer 1: conditionals stay as they are
    sliders = f"[...{reader.root}.querySelectorAll('.live-slider input')]"
    reader.browser.run(f"{sliders}[1].id = 'kept'")
    reader.press("#kept", "ArrowLeft", times=30)
    joint = posterior.exp().view(2, 2, 4)  # unit 1, unit 2, mask of layer 2
    given = joint / joint.sum((0, 2), keepdim=True)
    value = reader.numbers("keep")[0]
    assert value < joint.sum((0, 2))[1] - 0.25
    q = (given * torch.stack([1 - value, value])[:, None]).flatten()
    near(reader.numbers("residual"), evidence + q.log() - log_r)
    near(reader.number("kl"), exact.kl(q.log(), posterior))
    near(reader.number("elbo"), evidence - exact.kl(q.log(), posterior))
    near(reader.numbers("inflow")[1:], evidence.exp() * q.view(4, 4).sum(1))
    # one of layer 2 concerns the masks below its state alone
    reader.click("Exact")
    chosen = f"{reader.root}.querySelectorAll('select')[1]"
    assert reader.browser.run(f"{chosen}.options[5].textContent") == (
        "layer 2, unit 2, after 01 in layer 1"
    )
    reader.browser.run(f"{chosen}.id = 'which'")
    reader.press("#which", "ArrowDown", times=4)
    reader.press("#kept", "ArrowLeft", times=10)
    residual = reader.numbers("residual").abs()
    assert residual[4:8].min() > 0.01
    near(residual[[*range(4), *range(8, 16)]], torch.zeros(12).double())


@pytest.mark.browser
@no_chromium
def test_the_three_states_have_their_patterns(page, log_lik):
    reader = page("flow")
    posterior, _ = exact.log_posterior(log_lik[0], PRIOR)
    reader.click("log Z wrong by 0.5")
    near(reader.numbers("residual"), torch.full((16,), 0.5).double())
    reader.click("Two masks swapped")
    residual = reader.numbers("residual")
    gap = float(posterior.max() - posterior.min())
    assert sorted(residual.tolist())[0] == pytest.approx(-gap, abs=CLOSE)
    assert sorted(residual.tolist())[-1] == pytest.approx(gap, abs=CLOSE)
    assert int((residual.abs() > CLOSE).sum()) == 2
    reader.click("Exact")
    near(reader.numbers("residual"), torch.zeros(16).double())


@pytest.mark.browser
@no_chromium
def test_the_training_policy_is_the_packages(page, log_lik):
    reader = page("policy")
    sliders = f"[...{reader.root}.querySelectorAll('.live-slider input')]"
    reader.browser.run(f"{sliders}[0].id = 'heat'; {sliders}[1].id = 'coins'")
    for example in range(2):
        posterior, _ = exact.log_posterior(log_lik[example], PRIOR)
        (best,), _ = layerwise_optimum.best_layerwise(posterior[None], WIDTHS)
        near(reader.numbers("q"), best.exp())
        near(reader.number("kl"), exact.kl(best, posterior))
        joint = best.exp().view(4, 4)
        first, second = joint.sum(1).view(2, 2), (joint / joint.sum(1, keepdim=True)).view(4, 2, 2)
        keeps = (
            torch.stack([first.sum(1)[1], first.sum(0)[1]])[None],
            torch.stack([second.sum(2)[:, 1], second.sum(1)[:, 1]], 1),
        )
        tables = [keep.logit()[None] for keep in keeps]
        near(layerwise_optimum.log_prob(tables)[0], best)  # the tables are this q's
        for press in (None, ("#heat", "ArrowRight"), ("#coins", "ArrowRight"), ("#heat", "End")):
            if press:
                reader.press(*press)
            t, share = reader.number("temperature"), reader.number("share")
            (log_q,) = layerwise_optimum.log_prob(tables, t, share)
            near(reader.numbers("tempered"), log_q.exp())
            near(reader.number("entropy_tempered"), -(log_q.exp() * log_q).sum())
            near(reader.number("entropy"), -(best.exp() * best).sum())
        assert (t, share) == (8, pytest.approx(0.05))
        reader.click("Masks from q itself")
        near(reader.numbers("tempered"), best.exp())
        reader.press("select", "ArrowDown")


@pytest.mark.browser
@no_chromium
def test_views_share_a_page_and_a_phone_and_have_distinct_names(page):
    reader = page(twice=True)
    live_ones = "[...document.querySelectorAll('.gfo-live')]"
    assert reader.browser.run(f"{live_ones}.map(e => e.offsetHeight > 100)") == [True] * 8
    still = f"{live_ones}.map(e => e.querySelector('.live-static').offsetHeight)"
    assert reader.browser.run(still) == [0] * 8
    names = reader.browser.run("[...document.querySelectorAll('.gfo-live [id]')].map(e => e.id)")
    assert len(names) == len(set(names)) == 26
    assert reader.browser.run("document.documentElement.scrollWidth") <= 390
    checked = "[...document.querySelectorAll('[type=radio]:checked')].map(e => +e.value)"
    before = reader.browser.run(checked)
    reader.press("[type=radio]:checked", "ArrowRight")
    after = reader.browser.run(checked)
    assert len(before) == 2 and after[0] == before[0] + 1 and after[1] == before[1]


@pytest.mark.browser
@no_chromium
def test_every_control_has_a_name(page):
    reader = page()
    nameless = """[...document.querySelectorAll('.gfo-live :is(select, input, button)')].filter(e =>
      !(e.tagName === 'BUTTON' ? e.textContent : e.labels[0]?.textContent).trim()).length"""
    assert reader.browser.run(nameless) == 0
    assert reader.browser.run("document.querySelectorAll('[role=status]').length") == 4
