"""The look of the figures: a line of any colour is seen on white."""

import pytest

from gfo.evaluate import plots

CONTRAST = 3.0  # of parts of a picture against what they stand on (WCAG 2.1, 1.4.11)


def luminance(color: str) -> float:
    """Relative luminance of `#rrggbb`, 0 for black and 1 for white (WCAG 2.1)."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", [*plots.PALETTE, *plots.SPARE, *plots.COLORS.values()])
def test_lines_are_seen_on_white(color):
    assert (luminance("#ffffff") + 0.05) / (luminance(color) + 0.05) >= CONTRAST


def test_colors_differ():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE)
    assert len(set(plots.COLORS.values())) == len(plots.COLORS)
