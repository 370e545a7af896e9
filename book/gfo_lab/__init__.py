"""The laboratory of the book: experiments, their records, the ledger, the command line."""

from gfo.core.files import declared

__all__ = ["declared"]
