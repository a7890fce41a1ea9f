"""How it goes, for whoever watches; stdout is for the figures."""

import sys


def say(what: str) -> None:
    """Says it at once."""
    print(what, file=sys.stderr, flush=True)
