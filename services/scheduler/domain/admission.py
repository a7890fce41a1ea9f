"""Whether a request may wait: what would come too late, or finds no room, is refused at once.

The wait is predicted from the work that goes before the request, on the cost model that placement uses. In its own
contest each tenant gets the same, by weight, until the request's own tenant has had what it has waiting; more urgent
contests for the same models go first; others of the same class get as much as the request's own.

    before = sum over tenants j of min(work(j), (work(own) + request) * weight(j) / weight(own))
           + sum over more urgent contests of work + sum over equal contests of min(work, before in the own one)
    wait   = before * (waits that came / waits that were predicted, of late)

Work is the time that the whole fleet would take for it, so that a wait is a sum.
"""

from collections import OrderedDict
from typing import NamedTuple

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.fairness import ContestKey, FairShare, contest_of
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.placement import Outlook
from services.scheduler.domain.queue import Contest, Queue, Waiting
from services.scheduler.domain.request import Priority, Request

_RETRY_MIN_S, _RETRY_MAX_S = 0.1, 30.0
# What a queue may take of the time to the first token at least, where the prompt takes nearly all of it.
_LEAST_SHARE = 0.25
# How much of the experience with waits is kept at each placement, and how far it may correct the prediction.
_MEMORY, _FIRST_MS = 0.95, 1000.0
_LEAST_FACTOR, _MOST_FACTOR = 0.25, 4.0
_MAX_CONTESTS = 1024


# How long a refusal holds for others that ask for as much.
_STANDS_S = 0.02


class _Refusal(NamedTuple):
    at: float
    prompt_tokens: int
    error: DownstackError


class Admission:
    """Knows the queue's bounds and predicts its waits."""

    def __init__(self, queue: Queue, fair: FairShare, limits: Limits) -> None:
        self._queue = queue
        self._fair = fair
        self._limits = limits
        self._waits: OrderedDict[ContestKey, tuple[float, float]] = OrderedDict()
        self._refused: OrderedDict[tuple[ContestKey, str], _Refusal] = OrderedDict()

    # The wait

    def check_again(self, request: Request, now: float) -> None:
        """Raise what a request of the tenant that asked for no more was refused with a moment ago: at no cost."""
        last = self._refused.get((contest_of(request), request.tenant_id))
        if last is not None and now < last.at + _STANDS_S and _prompt_tokens(request) >= last.prompt_tokens:
            raise last.error

    def _refuse(self, request: Request, now: float, error: DownstackError) -> DownstackError:
        self._refused[contest_of(request), request.tenant_id] = _Refusal(now, _prompt_tokens(request), error)
        if len(self._refused) > _MAX_CONTESTS:
            self._refused.popitem(last=False)
        return error

    def check_wait(self, request: Request, outlook: Outlook, now: float) -> float:
        """The predicted wait in ms, uncorrected. Raises OVERLOADED or DEADLINE_IN_QUEUE for one that is too long.

        An outlook of nothing makes it a lower bound.
        """
        predicted = self._before_ms(request, outlook.fleet_ms)
        wait_ms, left_ms = predicted * self._factor(contest_of(request)), 1000 * (request.deadline_at - now)
        needed_ms = outlook.ttft_ms + outlook.decode_ms
        if left_ms < needed_ms or left_ms <= 0:
            message = f"the request needs {needed_ms:.0f} ms, and its deadline is in {left_ms:.0f} ms"
            raise DownstackError(Reason.DEADLINE_IN_QUEUE, message)
        most_ms = min(left_ms - needed_ms, self._patience_ms(request, outlook))
        if wait_ms > most_ms:
            message = f"the request would wait {wait_ms:.0f} ms, and may wait {most_ms:.0f} ms"
            error = DownstackError(Reason.OVERLOADED, message, retry_after_s=_retry_s(wait_ms - most_ms))
            raise self._refuse(request, now, error) if outlook.fleet_ms else error
        return predicted

    def _patience_ms(self, request: Request, outlook: Outlook) -> float:
        """How long a request may wait for the sake of its first token."""
        limits = self._limits
        wanted_ms = {
            Priority.INTERACTIVE: limits.admit_ttft_ms_interactive,
            Priority.STANDARD: limits.admit_ttft_ms_standard,
        }.get(request.priority)
        if wanted_ms is None:
            return 1000 * limits.max_wait_s
        return max(wanted_ms - outlook.ttft_ms, _LEAST_SHARE * wanted_ms)

    def _before_ms(self, request: Request, own_ms: float) -> float:
        key = contest_of(request)
        before, others = own_ms, 0.0
        for contest in self._queue.contests():
            if contest.key == key:
                before = self._fair_ms(contest, request.tenant_id, own_ms)
            elif contest.key.priority < key.priority and not set(key.models).isdisjoint(contest.key.models):
                others += contest.fleet_ms
        for contest in self._queue.contests():
            if contest.key.priority == key.priority and contest.key != key:
                others += 0.0 if set(key.models).isdisjoint(contest.key.models) else min(before, contest.fleet_ms)
        return before + others

    def _fair_ms(self, contest: Contest, tenant_id: str, own_ms: float) -> float:
        backlog = contest.tenants.get(tenant_id)
        own = own_ms + (backlog.fleet_ms if backlog is not None else 0.0)
        share = own / self._fair.weight(tenant_id)
        before = own
        for other, held in contest.tenants.items():
            if other != tenant_id:
                before += min(held.fleet_ms, share * self._fair.weight(other))
        return before

    def _factor(self, key: ContestKey) -> float:
        came, predicted = self._waits.get(key, (_FIRST_MS, _FIRST_MS))
        return min(_MOST_FACTOR, max(_LEAST_FACTOR, came / predicted))

    def placed(self, entry: Waiting, now: float) -> None:
        """Learn from a request that waited how long it did."""
        if entry.wait_ms is None:
            return
        key = contest_of(entry.request)
        came, predicted = self._waits.pop(key, (_FIRST_MS, _FIRST_MS))
        waited_ms = 1000 * (now - entry.arrived_at)
        self._waits[key] = (_MEMORY * came + waited_ms, _MEMORY * predicted + entry.wait_ms)
        if len(self._waits) > _MAX_CONTESTS:
            self._waits.popitem(last=False)

    # Room

    def make_room(self, request: Request) -> Waiting | None:
        """The request that must give its place to this one, if one must. Raises OVERLOADED or TENANT_CONCURRENCY.

        Who gives way is of the least urgent class that waits: of its tenant with the most requests, the last one. In
        the request's own class only a tenant with more requests than the request's own gives way.
        """
        limits, tenant_id = self._limits, request.tenant_id
        if self._queue.count_of(tenant_id) >= limits.max_queued_per_tenant:
            victim = self._last_of(request, only=tenant_id)
            if victim is None:
                message = f"{limits.max_queued_per_tenant} requests of this tenant are waiting already"
                raise DownstackError(Reason.TENANT_CONCURRENCY, message, retry_after_s=self._drained_s(request))
            return victim
        if len(self._queue) < limits.max_queued and not self._class_full(request.priority):
            return None
        full = None if len(self._queue) >= limits.max_queued else request.priority
        victim = self._last_of(request, within=full)
        if victim is None:
            message = f"{len(self._queue)} requests are waiting already"
            raise DownstackError(Reason.OVERLOADED, message, retry_after_s=self._drained_s(request))
        return victim

    def _class_full(self, priority: Priority) -> bool:
        count = self._queue.counts()[priority]
        match priority:
            case Priority.STANDARD:
                return count >= self._limits.max_queued_standard
            case Priority.BATCH:
                return count >= self._limits.max_queued_batch
            case _:
                return False

    def _last_of(self, request: Request, *, only: str = "", within: Priority | None = None) -> Waiting | None:
        classes = [within] if within is not None else [each for each in Priority if each >= request.priority]
        counts = self._queue.counts()
        for priority in sorted(classes, reverse=True):
            if not counts[priority]:
                continue
            victim = self._last_in(priority, request, only)
            if victim is not None:
                return victim
        return None

    def _last_in(self, priority: Priority, request: Request, only: str) -> Waiting | None:
        lanes = [lane for lane in self._queue.lanes() if lane.contest.priority is priority]
        held: dict[str, int] = {}
        for lane in lanes:
            held[lane.tenant_id] = held.get(lane.tenant_id, 0) + len(lane.entries)
        tenant_id = only or max(held, key=lambda each: held[each] / self._fair.weight(each))
        if priority is request.priority:
            own, theirs = held.get(request.tenant_id, 0) + 1, held.get(tenant_id, 0)
            if theirs / self._fair.weight(tenant_id) <= own / self._fair.weight(request.tenant_id):
                return None
        return max((lane.entries[-1] for lane in lanes if lane.tenant_id == tenant_id), default=(None, None))[1]

    def _drained_s(self, request: Request) -> float:
        return _retry_s(self._before_ms(request, 0.0))


def displaced(entry: Waiting) -> DownstackError:
    """What a request is told that gave its place to another."""
    message = "a more urgent request, or one of a tenant that waits with less, took the place in the full queue"
    return DownstackError(Reason.OVERLOADED, message, retry_after_s=_retry_s(entry.wait_ms or 0.0))


def _prompt_tokens(request: Request) -> int:
    return max(offer.prompt_tokens for offer in request.offers)


def _retry_s(wait_ms: float) -> float:
    return min(_RETRY_MAX_S, max(_RETRY_MIN_S, wait_ms / 1000))
