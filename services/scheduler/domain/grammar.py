"""The grammar of placement: filters exclude, scorers rate, a picker chooses. A policy is a sentence of these.

A sentence is about columns: each word looks at all workers of an offered model at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from services.scheduler.domain.cost import Estimate, charge, charges_nano
from services.scheduler.domain.request import Offer, Price, Request
from services.scheduler.domain.roster import Bools, Columns, Floats, Roster
from services.scheduler.domain.worker import Worker

Rows = npt.NDArray[np.intp]
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

    def __len__(self) -> int:
        return len(self.cached_tokens)

    @property
    def charges_nano(self) -> Floats:
        """What the caller would be charged."""
        uncached = self.offer.prompt_tokens - self.cached_tokens
        return charges_nano(self.price, uncached=uncached, cached=self.cached_tokens, output=self.output_tokens)

    def charged_nano(self, cached: Sequence[int]) -> list[int]:
        """`charges_nano` for these cached tokens, exactly."""
        most = charge(self.price, uncached=self.offer.prompt_tokens, cached=0, output=self.output_tokens)
        saved = self.price.input_nano - self.price.cached_nano
        return [most - saved * tokens for tokens in cached]


# A row in words: worker, model, cached tokens, times to the first and to the last token in ms, charge in nano units,
# score (None for one that a filter excluded), that filter, requests held.
Line = tuple[str, str, int, float, float, int, float | None, str, int]


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

    def __init__(self, groups: Sequence[Group], verdicts: Sequence[Verdicts], names: Sequence[str]) -> None:
        """`verdicts` number, for each row of each group, the filter of `names` that excluded it; 0 for none."""
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

    def rank(self, weighted: Sequence["Weighted"], request: Request, now: float) -> None:
        """Score every row."""
        for part in weighted:
            found = _joined([part.scorer.score(group, request, now) for group in self._groups])
            self.scores = self.scores + part.weight * found

    def place(self, row: int) -> tuple[Group, Worker]:
        """The offer and the worker of a row."""
        group, within = self._within(row)
        return group, group.roster.workers[within]

    def _within(self, row: int) -> tuple[Group, int]:
        for group in self._groups:
            if row < len(group):
                return group, row
            row -= len(group)
        raise IndexError(row)

    def read(self, rows: Sequence[int]) -> Iterator[Line]:
        """Some rows, in words."""
        if len(self._groups) > 1:
            return chain.from_iterable(
                self._read(group, [within], [row]) for row in rows for group, within in [self._within(row)]
            )
        return self._read(self._groups[0], rows, rows)

    def _read(self, group: Group, within: Sequence[int], rows: Sequence[int]) -> Iterator[Line]:
        """The rows of one group; `within` are their numbers in it."""
        workers, predicted = group.roster.workers, group.estimate
        cached = group.cached_tokens[within].astype(np.int64).tolist()
        names = [self._names[number] for number in self._verdicts[rows].tolist()]
        scores = self.scores[rows].tolist()
        return zip(
            [workers[row].worker_id for row in within],
            repeat(group.offer.model),
            cached,
            predicted.ttft_ms[within].tolist(),
            predicted.total_ms[within].tolist(),
            group.charged_nano(cached),
            [None if name else score for name, score in zip(names, scores, strict=True)],
            names,
            group.columns.requests[within].astype(np.int64).tolist(),
            strict=False,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A named way to choose. `filters` come after those that every policy keeps to."""

    name: str
    filters: tuple[Filter, ...] = ()
    scorers: tuple[Weighted, ...] = ()
    picker: Picker


class BestScore:
    """Picks the highest score; chance decides between equals."""

    def pick(self, slate: Slate, chance: Chance, /) -> int:
        scores = slate.scores[slate.passed]
        best = slate.passed[scores == scores.max()]
        return int(best[int(chance.random() * len(best))])
