"""A bounded memory of what recent keys turned out to be."""

import collections
import dataclasses

from services.kit.clock import Clock
from services.kit.errors import Reason
from services.kit.identity import Identity

Verdict = Identity | Reason


@dataclasses.dataclass(frozen=True)
class _Entry:
    verdict: Verdict
    good_until: float


class KeyCache:
    """Verdicts by a key's whole digest, each for at most `life_s`: so long may a revoked key go on working.

    Keys that work and keys that do not are kept apart, so that a flood of wrong keys cannot push out the right ones.
    """

    def __init__(self, *, life_s: float, clock: Clock, max_accepted: int = 10_000, max_refused: int = 10_000) -> None:
        self._life_s = life_s
        self._clock = clock
        self._accepted = _Lru(max_accepted)
        self._refused = _Lru(max_refused)

    def get(self, digest: bytes) -> Verdict | None:
        now = self._clock.monotonic()
        return self._accepted.get(digest, now) or self._refused.get(digest, now)

    def put(self, digest: bytes, verdict: Verdict, *, life_s: float = float("inf")) -> None:
        """Remember a verdict, for `life_s` if that is shorter than the cache's own."""
        life_s = min(life_s, self._life_s)
        if life_s <= 0:
            return
        entries = self._refused if isinstance(verdict, Reason) else self._accepted
        entries.put(digest, _Entry(verdict, self._clock.monotonic() + life_s))

    def __len__(self) -> int:
        return len(self._accepted) + len(self._refused)


class _Lru:
    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: collections.OrderedDict[bytes, _Entry] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes, now: float) -> Verdict | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry.good_until <= now:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return entry.verdict

    def put(self, digest: bytes, entry: _Entry) -> None:
        self._entries[digest] = entry
        self._entries.move_to_end(digest)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
