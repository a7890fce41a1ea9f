"""Choosing a worker for one request: evaluate, filter, score, pick."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.board import Board
from services.scheduler.domain.cost import cached_tokens, estimate
from services.scheduler.domain.filters import has_room, required
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.grammar import Binding, Chance, Group, Policy, Slate, Verdicts
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.lengths import OutputLengths
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.roster import without


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What placement looks at."""

    fleet: Fleet
    index: BlockIndex
    book: LeaseBook
    lengths: OutputLengths
    board: Board


class Placement:
    """Evaluates the fleet for a request, and chooses by the policy. Changes nothing but what the policy remembers."""

    def __init__(self, view: View, *, policy: Policy, prices: PriceList, limits: Limits, chance: Chance) -> None:
        self._view = view
        self._policy = policy
        self._prices = prices
        self._limits = limits
        self._chance = chance
        self._filters = (*required(policy.binding, limits), *policy.filters)
        self._filter_names = tuple(each.name for each in self._filters)

    @property
    def policy(self) -> str:
        return self._policy.name

    def evaluate(self, request: Request, *, now: float) -> Slate:
        """Every worker of every offered model, with what filtered it or its score."""
        groups = [group for offer in request.offers if (group := self._group(request, offer, now)) is not None]
        slate = Slate(request, groups, [self._judge(group, request) for group in groups], self._filter_names, now=now)
        if len(slate.passed):
            slate.rank(self._policy.scorers)
        return slate

    def choose(self, slate: Slate) -> int | None:
        """The row that the policy chooses among those that passed the filters. None: nobody did."""
        return self._policy.picker.pick(slate, self._chance) if len(slate.passed) else None

    def room_for(self, models: Iterable[str], excluded: frozenset[str]) -> bool:
        """Whether some worker of these models might take one more request: a cheap look before evaluating."""
        return any(self._has_room(model, excluded) for model in models)

    def _has_room(self, model: str, excluded: frozenset[str]) -> bool:
        roster = self._view.board.roster(model)
        columns = roster.columns
        late = self._policy.binding is Binding.LATE
        free = has_room(columns, self._limits) if late else columns.ready > 0
        if excluded:
            free &= without(roster.rows, excluded, count=len(roster))
        return bool(free.any())

    def _expected_output(self, request: Request, offer: Offer) -> int:
        if offer.output_tokens is not None:
            return min(offer.output_tokens, request.max_output_tokens)
        return self._view.lengths.expect(request.tenant_id, offer.model, at_most=request.max_output_tokens)

    def _group(self, request: Request, offer: Offer, now: float) -> Group | None:
        roster = self._view.board.roster(offer.model)
        if not len(roster):
            return None
        columns, price = roster.columns, self._prices.of(offer.model)
        blocks = self._view.index.depths(offer.block_hashes)[columns.number.astype(np.intp)]
        cached = cached_tokens(columns, offer, blocks)
        output = self._expected_output(request, offer)
        reported_since = now - 2 * self._limits.report_interval_s
        predicted = estimate(columns, offer, cached=cached, output=output, price=price, reported_since=reported_since)
        return Group(
            offer=offer,
            price=price,
            roster=roster,
            columns=columns,
            cached_tokens=cached,
            output_tokens=output,
            estimate=predicted,
            admitted=np.ones(len(roster), np.bool_),
        )

    def _judge(self, group: Group, request: Request) -> Verdicts:
        verdicts = np.zeros(len(group), np.int8)
        for number, each in enumerate(self._filters, start=1):
            admitted = each.admits(group, request)
            if not (admitted if isinstance(admitted, bool) else admitted.all()):
                verdicts[group.admitted & np.logical_not(admitted)] = number
                group.admitted &= admitted
        return verdicts


def impossible(slate: Slate) -> DownstackError | None:
    """The reason why waiting would not help: workers could take a request, but never this one."""
    if slate.refusals == {"adapter"}:
        names = ", ".join(sorted({offer.adapter for offer in slate.request.offers}))
        message = f"no worker holds the adapter {names}"
        return DownstackError(Reason.ADAPTER_NOT_FOUND, message, metadata={"adapter": names})
    refusals = slate.refusals - {"adapter", "ready", "not-tried"}
    if not refusals or not refusals <= {"context", "bounds"}:
        return None
    if refusals == {"context"}:
        return DownstackError(Reason.PROMPT_TOO_LONG, "the prompt is longer than the context of every worker")
    return DownstackError(Reason.PARAM_CONFLICT, "no candidate keeps to max_cost and min_quality")
