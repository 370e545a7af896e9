"""The laboratory of the book: experiments, their records, the ledger, the command line."""
