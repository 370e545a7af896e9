"""The masked pass and its views."""

__version__ = "0.2.0"
