"""The grammar of placement: filters exclude, scorers rate, a picker chooses. A policy is a sentence of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.scheduler.domain.cost import Estimate
from services.scheduler.domain.lease import Occupancy
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.worker import Worker


class Chance(Protocol):
    """Randomness, handed in: `random.Random` fits."""

    def random(self) -> float:
        """A number from 0 up to 1."""


@dataclass(slots=True)
class Candidate:
    """One worker considered for one offer. `score` is set for those that passed every filter."""

    worker: Worker
    offer: Offer
    held: Occupancy
    cached_tokens: int
    output_tokens: int
    estimate: Estimate
    filtered_by: str = ""
    score: float = 0.0


class Filter(Protocol):
    """Excludes candidates."""

    @property
    def name(self) -> str: ...

    def admits(self, candidate: Candidate, request: Request, /) -> bool: ...


class Scorer(Protocol):
    """Rates a candidate; more is better."""

    def score(self, candidate: Candidate, request: Request, now: float, /) -> float: ...


class Picker(Protocol):
    """Chooses among scored candidates, of which there is at least one."""

    def pick(self, candidates: Sequence[Candidate], chance: Chance, /) -> Candidate: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A scorer and its weight."""

    scorer: Scorer
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named way to choose. `filters` come after those that every policy keeps to."""

    name: str
    filters: tuple[Filter, ...] = ()
    scorers: tuple[Weighted, ...] = ()
    picker: Picker


class BestScore:
    """Picks the highest score; chance decides between equals."""

    def pick(self, candidates: Sequence[Candidate], chance: Chance, /) -> Candidate:
        top = max(candidate.score for candidate in candidates)
        best = [candidate for candidate in candidates if candidate.score == top]
        return best[int(chance.random() * len(best))]
