"""Scores, intervals, what masks do, and one look for all figures."""

from gfo.core.lazy import lazily

MODULES = ("marginal", "masks", "metrics", "plots", "stats", "uncertainty")
__getattr__ = lazily(__name__, MODULES)
