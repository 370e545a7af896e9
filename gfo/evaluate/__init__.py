"""Scores, intervals, what masks do, and one look for all figures."""

from gfo.core.lazy import lazily

MODULES = "calibrate conformal marginal masks metrics plots report stats uncertainty".split()
__getattr__ = lazily(__name__, MODULES)
