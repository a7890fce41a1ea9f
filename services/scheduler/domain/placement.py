"""Choosing a worker for one request: evaluate, filter, score, pick."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.affordable import WithinBudget
from services.scheduler.domain.board import Board
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.cost import cached_tokens, estimate, prefill_ms
from services.scheduler.domain.fairness import OUTPUT_WEIGHT
from services.scheduler.domain.filters import required
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.grammar import Binding, Chance, Group, Policy, Slate, Verdicts
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.lease import Lease
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.lengths import OutputLengths
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.pace import Pace
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
    budgets: Budgets


class Outlook(NamedTuple):
    """What a request would find that must wait for its turn."""

    fleet_ms: float = 0.0
    """The time that the whole fleet takes for it when it is busy."""
    ttft_ms: float = 0.0
    """From its placement to its first token, on the best worker."""
    decode_ms: float = 0.0
    """From then to the end of an answer that turns out short."""
    cached_tokens: float = 0.0
    """The longest resident prefix."""
    work_tokens: float = 0.0
    """What its tenant would be charged."""


_NOWHERE = Outlook()
_LEAST_MS = 1e-6


class Placement:
    """Evaluates the fleet for a request, and chooses by the policy. Changes nothing but what the policy remembers."""

    def __init__(self, view: View, *, policy: Policy, prices: PriceList, limits: Limits, chance: Chance) -> None:
        self._view = view
        self._policy = policy
        self._prices = prices
        self._limits = limits
        self._chance = chance
        self._pace = Pace(limits)
        self._filters = (*required(policy.binding, limits), WithinBudget(view.budgets), *policy.filters)
        self._filter_names = tuple(each.name for each in self._filters)

    @property
    def policy(self) -> str:
        return self._policy.name

    def evaluate(self, request: Request, *, now: float) -> Slate:
        """Every worker of every offered model, with what filtered it or its score."""
        groups = self._groups(request, now)
        slate = Slate(request, groups, [self._judge(group, request) for group in groups], self._filter_names, now=now)
        if len(slate.passed):
            slate.rank(self._policy.scorers)
        return slate

    def choose(self, slate: Slate) -> int | None:
        """The row that the policy chooses among those that passed the filters. None: nobody did."""
        if not len(slate.passed):
            return None
        row = self._policy.picker.pick(slate, self._chance)
        if self._policy.binding is Binding.LATE:
            group, inside = slate.locate(row)
            figures = group.roster.row(group.roster.workers[inside].worker_id)
            self._pace.given(figures, prefill_ms=float(group.estimate.prefill_ms[inside]), now=slate.now)
        return row

    def given_elsewhere(self, lease: Lease, *, now: float) -> None:
        """Another scheduler gave a worker a prompt: its time counts as if it had been given here."""
        roster = self._view.board.roster(lease.grant.model)
        row = roster.rows.get(lease.grant.worker_id)
        if row is None or self._policy.binding is not Binding.LATE:
            return
        grant, columns = lease.grant, roster.columns
        cached = np.full(len(roster), float(grant.predicted_cached_tokens))
        prefill = prefill_ms(columns, prompt=grant.prompt_tokens, cached=cached)
        figures = roster.row(grant.worker_id)
        self._pace.given(figures, prefill_ms=float(prefill[row]), now=now)

    def room_for(self, models: Iterable[str], excluded: frozenset[str], *, now: float) -> bool:
        """Whether some worker of these models might take one more request: a cheap look before evaluating."""
        return any(self._has_room(model, excluded, now) for model in models)

    def _has_room(self, model: str, excluded: frozenset[str], now: float) -> bool:
        roster = self._view.board.roster(model)
        if not len(roster):
            return False
        columns, late = roster.columns, self._policy.binding is Binding.LATE
        rows = np.flatnonzero(columns.room if late else columns.ready)
        if excluded:
            rows = rows[without(roster.rows, excluded, count=len(roster))[rows]]
        if not len(rows):
            return False
        if not late or np.count_nonzero(columns.requests[rows]) < len(rows):
            return True
        return bool(self._pace.allows(roster.numbers[rows], now=now).any())

    def _expected_output(self, request: Request, offer: Offer) -> int:
        if offer.output_tokens is not None:
            return min(offer.output_tokens, request.max_output_tokens)
        return self._view.lengths.expect(request.tenant_id, offer.model, at_most=request.max_output_tokens)

    def _groups(self, request: Request, now: float) -> list[Group]:
        return [group for offer in request.offers if (group := self._group(request, offer, now)) is not None]

    def outlook(self, request: Request, *, now: float) -> Outlook:
        """What the request would find, full workers included. Nothing, if no worker could ever take it."""
        found = [each for group in self._groups(request, now) if (each := self._outlook_of(group, request)) is not None]
        if not found:
            return _NOWHERE
        best = min(found, key=lambda each: each.ttft_ms)
        return best._replace(fleet_ms=1 / sum(1 / each.fleet_ms for each in found))

    def _outlook_of(self, group: Group, request: Request) -> Outlook | None:
        columns, offer = group.columns, group.offer
        able = (columns.ready > 0) & (offer.prompt_tokens < columns.prompt_room)
        if request.excluded_workers:
            able &= without(group.roster.rows, request.excluded_workers, count=len(group))
        if not able.any():
            return None
        ttft = np.where(able, group.estimate.ttft_ms, np.inf)
        row = int(ttft.argmin())
        cached = float(group.cached_tokens[able].max())
        prefill = prefill_ms(columns, prompt=offer.prompt_tokens, cached=np.full(len(group), cached))
        decode = group.estimate.total_ms - group.estimate.ttft_ms
        device_ms = np.maximum(_LEAST_MS, prefill + decode / columns.batch)
        short = self._short_output(request, offer, group.output_tokens)
        return Outlook(
            fleet_ms=float(1 / (1 / device_ms[able]).sum()),
            ttft_ms=float(ttft[row]),
            decode_ms=float(decode[row]) * (short - 1) / max(1, group.output_tokens - 1),
            cached_tokens=cached,
            work_tokens=offer.prompt_tokens - cached + OUTPUT_WEIGHT * group.output_tokens,
        )

    def resident_tokens(self, request: Request) -> float:
        """The longest prefix of the request's prompt that a worker holds which takes leases."""
        most = 0.0
        for offer in request.offers:
            roster = self._view.board.roster(offer.model)
            if len(roster) and offer.block_hashes:
                blocks = self._view.index.depths(offer.block_hashes)[roster.numbers]
                held = cached_tokens(roster.columns, offer, blocks) * (roster.columns.ready > 0)
                most = max(most, float(held.max()))
        return most

    def _short_output(self, request: Request, offer: Offer, expected: int) -> int:
        if offer.output_tokens is not None:
            return expected
        return self._view.lengths.expect_short(request.tenant_id, offer.model, at_most=request.max_output_tokens)

    def _group(self, request: Request, offer: Offer, now: float) -> Group | None:
        roster = self._view.board.roster(offer.model)
        if not len(roster):
            return None
        columns, price = roster.columns, self._prices.of(offer.model)
        blocks = self._view.index.depths(offer.block_hashes)[roster.numbers]
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
            if not (admitted if isinstance(admitted, bool) else np.count_nonzero(admitted) == len(group)):
                verdicts[group.admitted & np.logical_not(admitted)] = number
                group.admitted &= admitted
        return verdicts


def impossible(slate: Slate) -> DownstackError | None:
    """The reason why waiting would not help: workers could take a request, but never this one."""
    if slate.refusals == {"adapter"}:
        names = ", ".join(sorted({offer.adapter for offer in slate.request.offers}))
        message = f"no worker holds the adapter {names}"
        return DownstackError(Reason.ADAPTER_NOT_FOUND, message, metadata={"adapter": names})
    refusals = slate.refusals - {"adapter", "ready", "not-tried", "budget"}
    if not refusals or not refusals <= {"context", "bounds"}:
        return None
    if refusals == {"context"}:
        return DownstackError(Reason.PROMPT_TOO_LONG, "the prompt is longer than the context of every worker")
    return DownstackError(Reason.PARAM_CONFLICT, "no candidate keeps to max_cost and min_quality")
