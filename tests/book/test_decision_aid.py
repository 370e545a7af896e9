"""The decision aid of *Should I use it?* says what the records say, and needs no kernel."""

import json
import re

import nbformat
import numpy as np
import pytest
from browser import CHROMIUM, Browser
from gfo_lab import records
from gfo_lab.ledger import label
from scipy import stats

from book.tools import toc

CHAPTER = toc.ROOT / "book/should_i_use_it.ipynb"
PASSES, TRAINING = (1, 5, 20), (1, 5)
DEAR = {"ensemble", "mc-improved", "iw-dropout", "gflowout-recommended"}  # several passes per step
# Where a need lies in a record, by the masks averaged; without dropout, and for an ensemble, at 20.
PLACES = {
    "accuracy, clean": {k: ("accuracy_by_masks", at) for k, at in ((1, 0), (5, 2), (20, 4))},
    "likelihood, clean": {k: ("nll_by_masks", at) for k, at in ((1, 0), (5, 2), (20, 4))},
    "calibration, clean": {1: ("ece_one_mask",), 20: ("ece",)},
    "accuracy, rotated": {1: ("accuracy_one_mask_rotated",), 20: ("accuracy_rotated",)},
    "likelihood, rotated": {1: ("nll_one_mask_rotated",), 20: ("nll_rotated",)},
    "calibration, rotated": {1: ("ece_one_mask_rotated",), 20: ("ece_rotated",)},
    "accuracy under pixel noise 0.5": {20: ("accuracy_by_noise", 4)},
    "accuracy on the surest half, rotated": {20: ("selective_rotated", 0)},
    "telling CIFAR-100 from CIFAR-10": {20: ("outside", "cifar100", "entropy", "auroc")},
}
no_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def fragment() -> str:
    """What the chapter's cells up to the aid display last."""
    shown = []
    space = {"display": shown.append, "profile": "quick", "seed": 1, "data": None}
    for cell in nbformat.read(CHAPTER, as_version=4).cells:
        if cell.source.startswith("## When something is wrong"):
            break
        if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", []):
            exec(cell.source, space)
    return shown[-1].data


@pytest.fixture(scope="module")
def aid(fragment) -> dict:
    """The data in it."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', fragment)[1])


@pytest.fixture(scope="module")
def found() -> dict:
    """The records behind it, by data set."""
    photos = records.by_row("cifar", dataset="cifar10", profile="fast")
    kept = {
        "MNIST": records.read("table1", dataset="mnist", profile="full"),
        "CIFAR-10": photos[photos["method"] != "ensemble"],
    }
    return {name: frame.sort_values("seed").to_dict("records") for name, frame in kept.items()}


def by_hand(rows: list[dict], need: str, unit: str, passes: int, training: int) -> dict:
    """{method: (passes that it takes, values by seed)} within a budget."""
    left: dict = {}
    for row in rows:
        members = row["config"]["method"].get("members")  # of CIFAR's ensembles fewer
        fixed = {"deterministic": 1, "ensemble": members}.get(row["method"])
        place = PLACES[need].get(20 if fixed else passes)
        dear = row["method"] in DEAR and training == 1
        if dear or (fixed or passes) > passes or place is None:
            continue
        value = row
        for key in place:
            value = value[key]
        scale = 100 if unit == "%" else 1
        left.setdefault(label(row["method"]), (fixed or passes, []))[1].append(scale * value)
    return left


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("passes", PASSES)
def test_its_intervals_are_the_paired_ones_of_the_records(aid, found, passes, training):
    assert [need["name"] for need in aid["needs"]] == list(PLACES)
    assert aid["passes"] == [*PASSES] and [k for k, _ in aid["training"]] == [*TRAINING]
    for need, shown in zip(aid["needs"], aid["shown"], strict=True):
        rows = found[need["where"].split(",")[0]]
        left = by_hand(rows, need["name"], need["unit"], passes, training)
        here = shown[f"{passes} {training}"]
        assert {row[0] for row in here["rows"]} == left.keys()
        best = here["rows"][0][0]
        means = {name: np.mean(values) for name, (_, values) in left.items()}
        sign = 1 if need["better"] == "less" else -1
        assert sign * means[best] == min(sign * mean for mean in means.values())
        for name, used, mean, *gap in here["rows"]:
            assert used == left[name][0]
            assert mean == pytest.approx(means[name], rel=5e-4)  # 4 digits are shown
            if name == best:
                assert gap == [0, 0, 0]
                continue
            d = np.subtract(left[name][1], left[best][1])
            half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
            expected = [d.mean(), d.mean() - half, d.mean() + half]
            assert gap == pytest.approx(expected, rel=5e-3, abs=1e-12)  # 3 digits
            assert np.sign(gap[1:]).tolist() == np.sign(expected[1:]).tolist()


def test_who_is_not_on_record_is_named_and_nobody_else(aid, found):
    for need, shown in zip(aid["needs"], aid["shown"], strict=True):
        everyone = {label(row["method"]) for row in found[need["where"].split(",")[0]]}
        for budget, here in shown.items():
            passes, training = map(int, budget.split())
            too_dear = {label("ensemble")} if passes < 5 else set()
            if training == 1:
                too_dear |= set(map(label, DEAR))
            left = {row[0] for row in here["rows"]}
            assert set(here["absent"]) == everyone - too_dear - left


def test_its_plain_table_names_those_whose_interval_holds_zero(fragment, aid):
    cells = re.findall(r"<td>(.*?)</td>", fragment)
    places = [(shown, passes) for shown in aid["shown"] for passes in PASSES]
    assert len(cells) == len(places)
    for cell, (shown, passes) in zip(cells, places, strict=True):
        here = shown[f"{passes} 5"]
        near = [name for name, *_, low, high in here["rows"] if low <= 0 <= high]
        assert re.sub(r" \(of \d+ on record\)$", "", cell) == "; ".join(near)
        assert ("on record" in cell) == bool(here["absent"])


STATE = """({said: document.querySelector("[role=status]").textContent,
  rows: [...document.querySelectorAll(".aid-shown tbody th[scope=row]")].map(e => e.textContent),
  lead: [...document.querySelectorAll(".aid-shown tbody:first-of-type th[scope=row]")]
    .map(e => e.textContent),
  plain: document.querySelector(".aid-plain").offsetHeight > 0,
  live: document.querySelector(".aid-live").offsetHeight > 0,
  wide: document.documentElement.scrollWidth})"""


def choose(**values: object) -> str:
    """The script that a reader's choices stand for."""
    picks = "".join(
        f"one = document.querySelector('[name={name}]'); one.value = '{value}';"
        "one.dispatchEvent(new Event('change', {bubbles: true}));"
        for name, value in values.items()
    )
    return f"(() => {{ let one; {picks} }})()"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A chromium as wide as a phone."""
    running = Browser(tmp_path_factory.mktemp("profile"))
    running.resize(390)
    yield running
    running.close()


@pytest.fixture
def page(browser, fragment, tmp_path):
    """Opens a page of the fragment alone, with scripts or without."""

    def opened(scripts: bool = True):
        text = fragment if scripts else re.sub(r"<script>.*?</script>", "", fragment, flags=re.S)
        path = tmp_path / "aid.html"
        path.write_text(f"<!doctype html><meta charset='utf-8'>{text}", encoding="utf-8")
        browser.open(path.as_uri())
        return browser

    return opened


@pytest.mark.browser
@no_chromium
def test_another_choice_shows_other_methods(page, aid):
    reader = page()
    start = reader.run(STATE)
    assert start["live"] and not start["plain"]
    states = []
    for need, shown in enumerate(aid["shown"]):
        for budget, here in shown.items():
            passes, training = budget.split()
            reader.run(choose(need=need, passes=passes, training=training))
            state = reader.run(STATE)
            near = [name for name, *_, low, high in here["rows"] if low <= 0 <= high]
            names = [row[0] for row in here["rows"]]
            if len(names) > 1:
                assert state["lead"] == near
                assert state["rows"] == near + [name for name in names if name not in near]
            assert all(name in state["said"] for name in near + here["absent"])
            assert state["wide"] <= 390
            states.append(state["said"])
    assert len(set(states)) > len(aid["shown"])


@pytest.mark.browser
@no_chromium
def test_a_keyboard_chooses(page, aid):
    reader = page()
    before = reader.run(STATE)["said"]
    reader.run("document.querySelector('[name=need]').focus()")
    for kind in ("rawKeyDown", "keyUp"):
        key = {"key": "ArrowDown", "code": "ArrowDown", "windowsVirtualKeyCode": 40}
        reader.call("Input.dispatchKeyEvent", type=kind, **key)
    assert reader.run("document.querySelector('[name=need]').value") == "1"
    after = reader.run(STATE)
    assert after["said"] != before
    assert after["rows"][0] == aid["shown"][1]["20 5"]["rows"][0][0]


@pytest.mark.browser
@no_chromium
def test_without_scripts_and_on_paper_the_plain_table_stands(page):
    bare = page(scripts=False).run(STATE)
    assert bare["plain"] and not bare["live"]
    reader = page()
    reader.resize(718, "print")
    paper = reader.run(STATE)
    reader.resize(390)
    assert paper["plain"] and not paper["live"]
