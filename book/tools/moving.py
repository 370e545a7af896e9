"""The moving picture of the first screen: `python -m book.tools.moving` writes it anew.

One flower, one network, four of its masks in turn: what a mask switches off goes pale, with its
edges, and the prediction moves. All numbers are those of `toys.toy((5, 5), seed=3)`, a network of
iris trained with dropout. The picture moves by CSS alone; on paper, and where motion is not wanted,
it stands still at the first mask. `stage.py` puts it into the page, whose colours it takes.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_iris

import gfo
from gfo.audit import exact, toys

TARGET = Path(__file__).parents[1] / "assets/masks.svg"
HIDDEN, SEED = (5, 5), 3
POINT = 137  # of 150, a virginica of which the whole network is sure
# Each mask keeps half of the units and gives virginica about this probability.
WANTED = (0.97, 0.25, 0.8, 0.5)
APART = 5  # bits, at least, in which two of them differ
CLASSES = ("setosa", "versicolor", "virginica")
COLUMNS = (72, 152, 232, 312)  # x of the inputs, of both layers and of the outputs
BARS, LONG = 334, 134  # x, and length for a probability of 1
SECONDS, FADE = 16, 4  # of all four masks; of that, per cent, from one to the next
PALE = 0.09

STYLE = """
.gm { color: #222832; font: 15px sans-serif; font-family: inherit; }
@media (prefers-color-scheme: dark) { .gm { color: #ced6dd; } }
html[data-theme] .gm { color: inherit; }
.gm-box { max-width: 36rem; margin: 1rem auto; }
.gm-box svg { display: block; width: 100%; height: auto; }
.gm-box label { display: block; text-align: right; font-size: 0.85em; }
.gm text { fill: currentColor; }
.gm line { stroke: currentColor; stroke-width: 1.3; }
.gm .gm-unit { fill: #3596cf; stroke: currentColor; stroke-width: 1.3; }
.gm .gm-off { fill: none; stroke: currentColor; stroke-dasharray: 3 3; opacity: 0.6; }
.gm .gm-track { fill: none; stroke: currentColor; opacity: 0.35; }
.gm .gm-bar { fill: #d55e00; transform-box: fill-box; transform-origin: left; }
.gm .gm-mean { stroke-width: 3; }
.gm-box:has(input:checked) .gm * { animation-play-state: paused; }
@media print { .gm-box label { display: none; } .gm * { animation: none !important; } }
@media (prefers-reduced-motion: reduce) {
  .gm-box label { display: none; }
  .gm * { animation: none !important; }
}
"""


def measured() -> tuple[list[float], torch.Tensor, list[int]]:
    """The flower's sizes in cm, its class probabilities under all masks (1024, 3), and the four
    masks that are shown, by number."""
    toy = toys.toy(HIDDEN, points=150, seed=SEED)
    x, y = toy.x[[POINT]].expand(1024, -1), toy.y[[POINT]].expand(1024)
    masks = exact.all_masks(HIDDEN)
    with gfo.attach(toy.model, toy.sites, gfo.RandomDropout(keep=0.5), toy.x[:2]) as net:
        with torch.no_grad():
            probs = gfo.masked_pass(net, x, y, masks=masks).logits.softmax(-1)
    bits, chosen = torch.cat(masks, 1), []
    half = (bits.sum(1) == 5) & (masks[0].sum(1) - 2.5).abs().lt(1)
    for wanted in WANTED:
        off = (probs[:, 2] - wanted).abs().masked_fill(~half, torch.inf)
        for other in chosen:
            off[(bits != bits[other]).sum(1) < APART] = torch.inf
        chosen.append(int(off.argmin()))
    raw = torch.tensor(load_iris().data)
    return (x[0] * raw.std(0) + raw.mean(0)).tolist(), probs, chosen


class Steps:
    """Values that change from mask to mask, as CSS classes."""

    def __init__(self):
        self.names: dict[tuple[str, ...], str] = {}

    def of(self, values: list[float], form: str = "opacity: {}") -> str:
        """The name of the class whose property runs through these values, one per mask."""
        says = tuple(form.format(f"{value:.4g}") for value in values)
        return self.names.setdefault(says, f"gm-{len(self.names)}")

    def css(self) -> Iterator[str]:
        """The rules. Where nothing moves the first value holds."""
        for says, name in self.names.items():
            if len({*says}) == 1:
                yield f".gm .{name} {{ {says[0]}; }}"
                continue
            yield f".gm .{name} {{ {says[0]}; animation: {name} {SECONDS}s infinite; }}"
            share = 100 // len(says)
            ends = [(k * share, (k + 1) * share - FADE) for k in range(len(says))]
            marks = [f"{a}%, {b}% {{ {say}; }}" for (a, b), say in zip(ends, says, strict=True)]
            yield f"@keyframes {name} {{ {' '.join(marks)} 100% {{ {says[0]}; }} }}"


def column(count: int, middle: float = 130, apart: float = 38) -> list[float]:
    """Heights of so many units."""
    return [middle + apart * (k - (count - 1) / 2) for k in range(count)]


def text(x: float, y: float, words: str, anchor: str = "start", about: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{about}>{words}</text>'


def network(sizes: list[float], masks: list[str], steps: Steps) -> Iterator[str]:
    """Edges, units and heads; masks as strings of ten bits."""
    heights = [column(4), column(5), column(5), column(3, apart=54)]

    def on(layer: int, unit: int) -> list[int]:
        """Whether a unit is there, by mask."""
        at = 5 * (layer - 1) + unit
        return [int(mask[at]) if layer in (1, 2) else 1 for mask in masks]

    for layer in range(3):
        for j, y2 in enumerate(heights[layer + 1]):
            for i, y1 in enumerate(heights[layer]):
                both = [a * b for a, b in zip(on(layer, i), on(layer + 1, j), strict=True)]
                name = steps.of([max(both_on * 0.85, PALE) for both_on in both])
                ends = f'x1="{COLUMNS[layer]}" y1="{y1:g}" x2="{COLUMNS[layer + 1]}" y2="{y2:g}"'
                yield f'<line {ends} class="{name}"/>'
    for layer, x in enumerate(COLUMNS):
        for unit, y in enumerate(heights[layer]):
            if layer in (1, 2):
                yield f'<circle cx="{x}" cy="{y:g}" r="9.5" class="gm-off"/>'
            name = steps.of([float(value) for value in on(layer, unit)])
            yield f'<circle cx="{x}" cy="{y:g}" r="10" class="gm-unit {name}"/>'
    yield text(2, 20, "flower, cm") + text(BARS, 20, "prediction")
    yield from (text(x, 20, "mask", "middle") for x in COLUMNS[1:3])
    for size, y in zip(sizes, heights[0], strict=True):
        yield text(COLUMNS[0] - 18, y + 5, f"{size:.1f}", "end")


def bars(probs: torch.Tensor, chosen: list[int], steps: Steps) -> Iterator[str]:
    """The prediction under each mask in turn, and a line at the mean over all."""
    for k, (label, y) in enumerate(zip(CLASSES, column(3, apart=54), strict=True)):
        now = probs[chosen, k].tolist()
        yield text(BARS, y - 6, label)
        for turn, value in enumerate(now):
            name = steps.of([float(turn == other) for other in range(len(now))])
            yield text(BARS + LONG, y - 6, f"{100 * value:.0f} %", "end", f' class="{name}"')
        place = f'x="{BARS}" y="{y:g}" width="{LONG}" height="14"'
        yield f'<rect {place} class="gm-bar {steps.of(now, "transform: scaleX({})")}"/>'
        yield f'<rect {place} class="gm-track"/>'
        at = BARS + LONG * float(probs[:, k].mean())
        yield f'<line x1="{at:.1f}" y1="{y - 3:g}" x2="{at:.1f}" y2="{y + 17:g}" class="gm-mean"/>'


def picture() -> str:
    """The SVG, without blank lines: it is to stand in Markdown."""
    sizes, probs, chosen = measured()
    masks, steps = [f"{mask:010b}" for mask in chosen], Steps()
    body = [*network(sizes, masks, steps), *bars(probs, chosen, steps)]
    style = STYLE.strip() + "\n" + "\n".join(steps.css())
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 226" class="gm" role="img">'
    return "\n".join([head, f"<style>\n{style}\n</style>", *body, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
