"""Blocks by the names that an engine gives them, and by those that router and scheduler use."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


@dataclass(slots=True)
class _Known:
    ours: int
    copies: int


class BlockNames(Generic[Name]):
    """The engine's names of resident blocks.

    An engine may hold the same block twice; the name lasts as long as the last copy.
    """

    def __init__(self) -> None:
        self._known: dict[Name, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def ours(self, theirs: Name) -> int | None:
        """Our name of a resident block. None: it has none."""
        known = self._known.get(theirs)
        return known.ours if known is not None else None

    def stored(self, theirs: Name, ours: int) -> int:
        """One more copy is resident; returns our name, which is that of the first copy."""
        known = self._known.setdefault(theirs, _Known(ours, 0))
        known.copies += 1
        return known.ours

    def removed(self, names: Iterable[Name]) -> list[int]:
        """One copy less of each; returns our names of those that have one."""
        found = []
        for theirs in names:
            known = self._known.get(theirs)
            if known is None:
                continue
            found.append(known.ours)
            known.copies -= 1
            if known.copies == 0:
                del self._known[theirs]
        return found

    def clear(self) -> None:
        """No block is resident."""
        self._known.clear()
