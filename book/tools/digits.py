"""Digits that mean something in the tables of a page; the records keep them all."""

import math
import re

from bs4 import BeautifulSoup

SPREAD = re.compile(r"([-−+]?\d+\.\d+) ± (\d+\.\d+)")
COUNT = re.compile(r"(\d+)\.0+")
COUNTS = {"n", "seeds"}  # columns of whole numbers, which pandas may hold as floats


def sensible(html: str) -> str:
    """A table with two digits of each half interval, its mean to match, and whole counts."""
    return whole_counts(SPREAD.sub(lambda found: spread(found[1], found[2]), html))


def spread(mean: str, half: str) -> str:
    """`101.4733 ± 12.6291` as `101 ± 13`; what is written shorter stays as it is."""
    if float(half) == 0:
        return f"{mean} ± {half}"
    places = max(0, 1 - math.floor(math.log10(float(half))))
    if places >= len(half.partition(".")[2]):
        return f"{mean} ± {half}"
    sign = "+" if mean.startswith("+") else ""
    value = float(mean.replace("−", "-"))
    return f"{value:{sign}.{places}f} ± {float(half):.{places}f}"


def whole_counts(html: str) -> str:
    """A table whose counts are written `3`, not `3.00`."""
    soup = BeautifulSoup(html, "html.parser")
    changed = False
    for table in soup.find_all("table"):
        for head in table.select("thead tr"):
            names = [cell.get_text().strip() for cell in head.find_all(["th", "td"])]
            ends = [len(names) - k for k, name in enumerate(names) if name in COUNTS]
            for end in ends:  # counted from the right: headers of rows may span them
                for row in table.select("tbody tr"):
                    cell = row.find_all(["th", "td"])[-end:][:1]
                    if cell and (found := COUNT.fullmatch(cell[0].get_text().strip())):
                        cell[0].string, changed = found[1], True
    return str(soup) if changed else html
