"""Decisions of the retriever as plain code: no I/O, no clock, no randomness of its own."""
