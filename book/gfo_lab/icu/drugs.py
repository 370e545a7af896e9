"""Which drug an eICU row means: codes where there are any, names that vote for a code elsewhere."""

import pandas as pd

from gfo_lab import declared

WORDS = declared(__file__, "words.toml")
FLUIDS = set(WORDS["fluids"].split())
PACKAGING = rf"(?: (?:[a-z]|{'|'.join(WORDS['forms'].split())}))+$"  # the first word always stays


def phrase(names: pd.Series) -> pd.Series:
    """The drug in an order's name, lower case: "3 ML VIAL : INSULIN REGULAR HUMAN 100 UNIT/ML" and
    "insulin regular human inj" both give "insulin regular human". Empty where nothing is left."""
    text = names.fillna("").str.lower()
    text = text.str.replace(r"^\d[^:]*?(?::|\s-\s)\s*", "", regex=True)  # the container in front
    text = text.str.extract(r"^\s*([a-z][a-z' /-]*)", expand=False).fillna("")  # up to a number
    text = text.str.replace(r"[^a-z]+", " ", regex=True).str.strip()
    return text.str.replace(PACKAGING, "", regex=True)


def infused(names: pd.Series) -> pd.Series:
    """The first word of an infusion's name that is no carrier fluid, lower case; else empty."""
    text = names.fillna("").str.lower().str.replace(r"\([^)]*\)?", " ", regex=True)
    words = text.str.findall(r"[a-z]{2,}")
    return words.map(lambda found: next((w for w in found if w not in FLUIDS), ""))


def votes(orders: pd.DataFrame) -> pd.Series:
    """How often each (name, code) pair stands in rows that have both: index (name, code)."""
    both = orders[orders["drughiclseqno"].notna() & orders["drugname"].notna()]
    pairs = pd.DataFrame({"name": phrase(both["drugname"]), "code": both["drughiclseqno"]})
    return pairs[pairs["name"] != ""].value_counts().rename("count")


class Codes:
    """What the named orders of a data set say: the code of a name, and the name of a code."""

    def __init__(self, counted: pd.Series):
        table = counted.groupby(level=[0, 1]).sum().rename("count").reset_index()
        self.of_name = self.majority(table)
        self.of_word = self.majority(table.assign(name=table["name"].str.split().str[0]))
        best = table.sort_values(["count", "name"], ascending=[False, True])
        self.name_of = best.drop_duplicates("code").set_index("code")["name"]

    @staticmethod
    def majority(table: pd.DataFrame) -> pd.Series:
        """The code that more than half of a name's orders carry."""
        table = table.groupby(["name", "code"], as_index=False)["count"].sum()
        share = table["count"] / table.groupby("name")["count"].transform("sum")
        return table[share > 0.5].set_index("name")["code"]

    def tokens(self, orders: pd.DataFrame, recover: bool = True) -> pd.Series:
        """One token per order: "hicl 2812", or "name warfarin" where no code is known; empty where
        there is neither. Without `recover`, orders without a code of their own get none."""
        code, names = orders["drughiclseqno"], phrase(orders["drugname"])
        if recover:
            first = names.str.split().str[0].fillna("")
            code = code.fillna(names.map(self.of_name)).fillna(first.map(self.of_word))
        token = "hicl " + code.fillna(0).astype(int).astype(str)
        return token.where(code.notna(), ("name " + names).where(recover & (names != ""), ""))

    def label(self, token: str) -> str:
        """A token as people read it."""
        kind, _, rest = token.partition(" ")
        name = self.name_of.get(int(rest), token) if rest.isdigit() else rest
        return name + {"infusion": " (infusion)", "home": " (home)"}.get(kind, "")
