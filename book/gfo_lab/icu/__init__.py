"""Intensive care: the eICU tables, a cohort of them, and splits by hospital."""

from gfo_lab.icu import hospitals

__all__ = ["hospitals"]
