"""The grammar of placement: filters exclude, scorers rate, a picker chooses. A policy is a sentence of these.

A sentence is about columns: each word looks at all workers of an offered model at once. What a policy remembers of its
own placements, its picker learns when it picks: what is picked is placed.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from services.scheduler.domain.cost import Counts, Estimate, charge, charges_nano
from services.scheduler.domain.record import Shortlist
from services.scheduler.domain.request import Offer, Price, Request
from services.scheduler.domain.roster import Bools, Columns, Floats, Roster, Rows
from services.scheduler.domain.worker import Worker

Verdicts = npt.NDArray[np.int8]
_N = TypeVar("_N", bound=np.generic)


class Chance(Protocol):
    """Randomness, handed in: `random.Random` fits."""

    def random(self) -> float:
        """A number from 0 up to 1."""


@dataclass(slots=True, kw_only=True)
class Group:
    """One offer and the workers of its model; row i of each column is `roster.workers[i]`."""

    offer: Offer
    price: Price
    roster: Roster
    columns: Columns
    cached_tokens: Floats
    output_tokens: int
    estimate: Estimate
    admitted: Bools
    """The rows that no filter has excluded so far."""

    def __len__(self) -> int:
        return len(self.cached_tokens)

    @property
    def charges_nano(self) -> Floats:
        """What the caller would be charged."""
        uncached = self.offer.prompt_tokens - self.cached_tokens
        return charges_nano(self.price, uncached=uncached, cached=self.cached_tokens, output=self.output_tokens)

    @property
    def exact_charges_nano(self) -> Counts:
        """The same in integers, for the record."""
        cached = self.cached_tokens.astype(np.int64)
        uncached = self.offer.prompt_tokens - cached
        return charge(self.price, uncached=uncached, cached=cached, output=self.output_tokens)


class Filter(Protocol):
    """Excludes candidates."""

    @property
    def name(self) -> str: ...

    def admits(self, group: Group, request: Request, /) -> Bools | bool:
        """Which rows may take the request; a single answer is for all of them."""


class Scorer(Protocol):
    """Rates candidates; more is better."""

    def score(self, group: Group, request: Request, now: float, /) -> Floats: ...


class Slate:
    """All candidates of a request: the rows of its groups, one group after the other."""

    def __init__(
        self,
        request: Request,
        groups: Sequence[Group],
        verdicts: Sequence[Verdicts],
        names: Sequence[str],
        *,
        now: float,
    ) -> None:
        """`verdicts` number, for each row of each group, the filter of `names` that excluded it; 0 for none."""
        self.request = request
        self.now = now
        self._groups = groups
        self._names = ("", *names)
        self._verdicts = _joined(verdicts) if groups else np.zeros(0, np.int8)
        self.passed: Rows = np.flatnonzero(self._verdicts == 0)
        self.scores: Floats = np.zeros(len(self._verdicts))

    def __len__(self) -> int:
        return len(self._verdicts)

    @property
    def refusals(self) -> frozenset[str]:
        """The filters that excluded somebody."""
        return frozenset(self._names[number] for number in set(self._verdicts.tolist()) if number)

    def rank(self, weighted: Sequence["Weighted"]) -> None:
        """Score every row."""
        for part in weighted:
            found = _joined([part.scorer.score(group, self.request, self.now) for group in self._groups])
            self.scores = self.scores + part.weight * found

    def locate(self, row: int) -> tuple[Group, int]:
        """The group of a row, and its row there."""
        for group in self._groups:
            if row < len(group):
                return group, row
            row -= len(group)
        raise IndexError(row)

    def place(self, row: int) -> tuple[Group, Worker]:
        """The offer and the worker of a row."""
        group, inside = self.locate(row)
        return group, group.roster.workers[inside]

    def shortlist(self, rows: Sequence[int]) -> Shortlist:
        """Copies of some rows."""
        groups = self._groups
        firsts = list(accumulate(map(len, groups), initial=0))
        places = [(groups[number := bisect_right(firsts, row) - 1], row - firsts[number]) for row in rows]
        return Shortlist(
            worker_ids=tuple([group.roster.workers[inside].worker_id for group, inside in places]),
            models=tuple([group.offer.model for group, _ in places]),
            filtered_by=tuple([self._names[number] for number in self._verdicts[rows].tolist()]),
            cached_tokens=_joined([group.cached_tokens for group in groups])[rows],
            ttft_ms=_joined([group.estimate.ttft_ms for group in groups])[rows],
            total_ms=_joined([group.estimate.total_ms for group in groups])[rows],
            charges_nano=_joined([group.exact_charges_nano for group in groups])[rows],
            scores=self.scores[rows],
            requests=_joined([group.columns.requests for group in groups])[rows],
        )

    def best(self, count: int) -> list[int]:
        """The rows in order: those that passed by their scores, then the others by their time to the first token."""
        found = _lowest(self.passed, -self.scores[self.passed], count)
        if len(found) < min(count, len(self)):
            excluded = np.flatnonzero(self._verdicts)
            ttft = _joined([group.estimate.ttft_ms for group in self._groups])
            found += _lowest(excluded, ttft[excluded], count - len(found))
        return found


def _joined(columns: Sequence[npt.NDArray[_N]]) -> npt.NDArray[_N]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def _lowest(rows: Rows, keys: Floats, count: int) -> list[int]:
    if len(rows) > count:
        nearest = np.argpartition(keys, count)[:count]
        rows, keys = rows[nearest], keys[nearest]
    found: list[int] = rows[np.argsort(keys, kind="stable")].tolist()
    return found


class Picker(Protocol):
    """Chooses a row among those that passed, of which there is at least one."""

    def pick(self, slate: Slate, chance: Chance, /) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """A scorer and its weight."""

    scorer: Scorer
    weight: float = 1.0


class Binding(Enum):
    """When a request is bound to a worker."""

    LATE = "late"
    """When a worker has room for it; until then it waits in the scheduler, where the order can still change."""
    AT_ONCE = "at once"
    """When it arrives; what its worker cannot run yet, waits in that worker's engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named way to choose. `filters` come after those that every policy keeps to."""

    name: str
    binding: Binding = Binding.LATE
    filters: tuple[Filter, ...] = ()
    scorers: tuple[Weighted, ...] = ()
    picker: Picker


class BestScore:
    """Picks the highest score; chance decides between equals."""

    def pick(self, slate: Slate, chance: Chance, /) -> int:
        scores = slate.scores[slate.passed]
        best = slate.passed[scores == scores.max()]
        return int(best[int(chance.random() * len(best))])


class FirstBest:
    """Picks the highest score, and of equals the first."""

    def pick(self, slate: Slate, _chance: Chance, /) -> int:
        return int(slate.passed[int(slate.scores[slate.passed].argmax())])
