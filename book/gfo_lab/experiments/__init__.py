"""Experiments: each turns (dataset, method, seed, profile) into the metrics of one record."""

from gfo_lab.experiments import adaptation, audit, cifar, digits, easy_vqa, icu, icu_tune

from gfo_lab.experiments import halves, prior, search, variations  # isort: skip
from gfo_lab.experiments.job import EXPERIMENTS

__all__ = ["EXPERIMENTS"]
