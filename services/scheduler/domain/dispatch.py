"""Late binding: waiting requests are placed, in order, as soon as a worker should take them."""

from collections import OrderedDict
from collections.abc import Callable

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.admission import Admission
from services.scheduler.domain.affordable import unaffordable
from services.scheduler.domain.budget import reserved
from services.scheduler.domain.decision import Decision, reason_of, shortlist
from services.scheduler.domain.fairness import FairShare, offered_by
from services.scheduler.domain.grammar import Group, Slate
from services.scheduler.domain.instructions import Instruction, Place, Refuse
from services.scheduler.domain.lease import Grant
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.placement import Placement, View, impossible
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.queue import Lane, Queue, Waiting
from services.scheduler.domain.record import Shortlist
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.worker import Worker

MAX_RECENT_DECISIONS = 4096
# How long a look at the resident prefix of a request that waits is good.
_LOOK_AGAIN_S = 0.25


class Dispatcher:
    """Takes requests from the queue, grants their leases, and remembers the decisions of late."""

    def __init__(
        self,
        view: View,
        *,
        queue: Queue,
        fair: FairShare,
        admission: Admission,
        placement: Placement,
        prices: PriceList,
        limits: Limits,
        new_lease_id: Callable[[], str],
    ) -> None:
        self._fleet, self._index, self._book = view.fleet, view.index, view.book
        self._budgets = view.budgets
        self._queue = queue
        self._fair = fair
        self._admission = admission
        self._placement = placement
        self._prices = prices
        self._limits = limits
        self._new_lease_id = new_lease_id
        self._decisions: OrderedDict[str, Decision] = OrderedDict()

    def dispatch(self, now: float) -> list[Instruction]:
        """Place whatever can be placed, in order. A request that finds no worker lets other tenants' pass."""
        found: list[Instruction] = []
        stuck: set[Waiting] = set()
        rooms: dict[tuple[tuple[str, ...], frozenset[str]], bool] = {}

        def usable(lane: Lane) -> bool:
            key = (lane.models, lane.excluded)
            if key not in rooms:
                rooms[key] = self._placement.room_for(*key, now=now)
            return rooms[key] and lane.head() not in stuck

        def resident(entry: Waiting) -> float:
            return -1.0 if entry in stuck else self._resident(entry, now)

        while (entry := self._queue.next(now=now, usable=usable, resident=resident)) is not None:
            outcome = self._place(entry, now)
            if outcome is None:
                stuck.add(entry)
                continue
            self._queue.remove(entry)
            if isinstance(outcome, Place):
                self._queue.served(entry, now=now)
                self._admission.placed(entry, now)
            found.append(outcome)
            rooms.clear()
        return found

    def place_at_once(self, entry: Waiting, now: float) -> Instruction | None:
        """Place, or refuse for ever, a request that has just come and need not wait. None: it must.

        Whatever waits was tried when something last changed, and found no worker; so a newcomer that finds one takes
        it from nobody. Only its own tenant's requests keep their order.
        """
        request = entry.request
        if self._queue.lane_of(request) is not None:
            return None
        models = {offer.model for offer in request.offers}
        return self._place(entry, now) if self._placement.room_for(models, request.excluded_workers, now=now) else None

    def _resident(self, entry: Waiting, now: float) -> float:
        if now - entry.looked_at >= _LOOK_AGAIN_S:
            entry.resident_tokens, entry.looked_at = self._placement.resident_tokens(entry.request), now
        return entry.resident_tokens

    def _place(self, entry: Waiting, now: float) -> Instruction | None:
        refusal = unaffordable(entry.request, budgets=self._budgets, prices=self._prices)
        if refusal is not None:
            return Refuse(entry.call, refusal)
        slate = self._placement.evaluate(entry.request, now=now)
        row = self._placement.choose(slate)
        if row is None:
            error = impossible(slate)
            return None if error is None else Refuse(entry.call, error)
        kept = shortlist(slate, row)
        left_s = entry.request.deadline_at - now
        if entry.arrived_at < now and kept.ttft_ms[0] > 1000 * left_s:
            message = f"after {now - entry.arrived_at:.1f} s in the queue, {left_s:.1f} s are too few for a first token"
            return Refuse(entry.call, DownstackError(Reason.DEADLINE_IN_QUEUE, message))
        return self._grant(entry, kept, slate.place(row), slate, now)

    def _grant(self, entry: Waiting, kept: Shortlist, place: tuple[Group, Worker], slate: Slate, now: float) -> Place:
        request, (group, worker) = entry.request, place
        best = kept.first(2)
        cached = best[0].cached_tokens
        offer, output = group.offer, group.output_tokens
        terms = self._terms(entry, offer, worker, cached=cached, output=output, now=now)
        warnings = self._budgets.warnings(reserved(terms))
        lease = self._book.grant(terms)
        self._fair.charge(lease)
        exact = worker.spec.kv_events
        life = self._limits.predicted_life_s if exact else self._limits.approximate_life_s
        at_most = None if exact else worker.spec.kv_blocks
        if offer.block_size == worker.spec.block_size:
            known = cached // offer.block_size
            self._index.predict(worker.worker_id, offer.block_hashes, known=known, until=now + life, at_most=at_most)
        self._fleet.touch()
        reason = reason_of(best, slate, prompt_tokens=offer.prompt_tokens)
        decision = self._record(request, kept, reason, lease.grant, warnings)
        self._remember(decision)
        return Place(entry.call, lease.grant, worker.endpoint, decision)

    def _record(
        self, request: Request, kept: Shortlist, reason: str, grant: Grant, warnings: tuple[str, ...]
    ) -> Decision:
        return Decision(
            request_id=request.request_id,
            attempt=request.attempt,
            tenant_id=request.tenant_id,
            lease_id=grant.lease_id,
            model=grant.model,
            worker_id=grant.worker_id,
            policy=self._placement.policy,
            reason=reason,
            shortlist=kept,
            prompt_tokens=grant.prompt_tokens,
            predicted_cached_tokens=grant.predicted_cached_tokens,
            queue_ms=grant.queue_ms,
            decided_at=grant.granted_at,
            budget_warnings=warnings,
        )

    def _terms(self, entry: Waiting, offer: Offer, worker: Worker, *, cached: int, output: int, now: float) -> Grant:
        request = entry.request
        return Grant(
            lease_id=self._new_lease_id(),
            request_id=request.request_id,
            attempt=request.attempt,
            tenant_id=request.tenant_id,
            key_id=request.key_id,
            worker_id=worker.worker_id,
            worker_epoch=worker.epoch,
            model=offer.model,
            requested_model=request.offers[0].model if len(request.offers) == 1 else "auto",
            adapter=offer.adapter,
            cache_salt=request.cache_salt,
            prompt_tokens=offer.prompt_tokens,
            max_output_tokens=min(request.max_output_tokens, worker.spec.context_tokens - offer.prompt_tokens),
            priority=request.priority,
            conversation_id=request.conversation_id,
            labels=request.labels,
            price=self._prices.of(offer.model),
            granted_at=now,
            expires_at=now + self._limits.ticket_ttl_s,
            queue_ms=1000 * (now - entry.arrived_at),
            predicted_cached_tokens=cached,
            retrieved_tokens=request.retrieved_tokens,
            answers=request.answers,
            expected_output=output,
            offered=offered_by(request),
        )

    def _remember(self, decision: Decision) -> None:
        self._decisions[decision.lease_id] = decision
        if len(self._decisions) > MAX_RECENT_DECISIONS:
            self._decisions.popitem(last=False)

    def decision(self, lease_id: str) -> Decision | None:
        return self._decisions.get(lease_id)

    def decisions_of(self, *, tenant_id: str, request_id: str) -> list[Decision]:
        """The recent decisions of a request, first to last."""
        return [
            decision
            for decision in self._decisions.values()
            if (decision.tenant_id, decision.request_id) == (tenant_id, request_id)
        ]
