"""Which scheduler a request goes to, as every router would say (rendezvous hashing, Thaler and Ravishankar 1998)."""

from collections.abc import Iterable

import xxhash


def preferred(addresses: Iterable[str], *, model: str) -> list[str]:
    """The addresses in the order in which a model's requests go to them. Without one of them, the rest keep theirs."""
    return sorted(addresses, key=lambda address: xxhash.xxh3_64_intdigest(f"{address}\0{model}".encode()))
