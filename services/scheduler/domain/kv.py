"""What workers report of their KV caches."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that are now resident."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that are no longer resident."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """No block is resident."""


Change = Stored | Removed | Cleared


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One batch of changes; an epoch's deltas are numbered from 1 without gap."""

    epoch: str
    sequence: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """A part of the resident blocks as they were after delta `sequence`."""

    epoch: str
    sequence: int
    hashes: tuple[int, ...]
    last: bool
