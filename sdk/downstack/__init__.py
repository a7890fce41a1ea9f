"""The public package of Downstack: contracts, client, command line and local run."""

from importlib import import_module
from typing import Any

_LAZY = {"Client": "downstack.client", "ApiError": "downstack.errors"}


def __getattr__(name: str) -> Any:
    # Lazy, so that the services, which need only the stubs, do not load the client.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
