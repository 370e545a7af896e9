"""Scores, intervals, what masks do, and one look for all figures."""

from gfo.core.lazy import lazily

__getattr__ = lazily(__name__)
