"""The journal on the outbox: facts become events on Kafka."""

from downstack.events.v1.events_pb2 import Administered, AuditRecorded, BudgetPassed, UsageRecorded, WorkerChanged
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant
from downstack.types.v1.usage_pb2 import FinishReason, Timings, UsageSource

from services.kit.context import current_request_id
from services.kit.errors import DownstackError
from services.kit.events.event import audit_event, usage_event, worker_event
from services.kit.events.outbox import Outbox
from services.kit.identity import current_identity
from services.kit.pricing import cost_of
from services.scheduler.adapters.budget_wire import status_message
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.adapters.writing import PHASES, decision_message, grant_message, spec_message, usage_message
from services.scheduler.domain.budget import BudgetKey
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import RecordPassed, RecordUsage, RecordWorker
from services.scheduler.domain.lease import Ending, Grant, Usage
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.reconcile import Unmatched

_NOTHING_USED = Usage(input_total=0, input_cached=0, output_total=0)


class OutboxJournal:
    """Appends to the outbox; what it returns from is durable."""

    def __init__(self, outbox: Outbox, *, scheduler_id: str, prices: PriceList, timeline: Timeline) -> None:
        self._outbox = outbox
        self._scheduler_id = scheduler_id
        self._source = f"downstack/scheduler/{scheduler_id}"
        self._prices = prices
        self._timeline = timeline

    def check_open(self) -> None:
        self._outbox.check_open()

    async def decided(self, decision: Decision, grant: Grant) -> None:
        message = grant_message(grant, timeline=self._timeline)
        # The salt protects the tenant's cache, and a record has no use for it.
        message.ClearField("cache_salt")
        record = AuditRecorded(
            tenant_id=decision.tenant_id,
            request_id=decision.request_id,
            conversation_id=grant.conversation_id,
            principal=_principal(),
            key_id=grant.key_id,
            occurred_at=self._timeline.stamp(decision.decided_at),
            decided=decision_message(decision, scheduler_id=self._scheduler_id, prices=self._prices),
            grant=message,
        )
        event = audit_event(record, source=self._source, kind="decided", id_parts=[decision.lease_id])
        await self._outbox.append(event)

    async def closed(self, record: RecordUsage) -> None:
        """Write what the scheduler knows of a lease that its worker will not account for.

        The event has the id that the worker's own record would have, so the ledger takes one of the two.
        """
        lease, unused = record.lease, record.ending is Ending.UNUSED
        grant = grant_message(lease.grant, timeline=self._timeline)
        usage = usage_message(_NOTHING_USED if unused else lease.usage or Usage())
        message = UsageRecorded(
            grant=grant,
            usage=usage,
            cost=cost_of(grant.price, usage),
            finish_reason=FinishReason.FINISH_REASON_UNUSED if unused else FinishReason.FINISH_REASON_ERROR,
            source=UsageSource.USAGE_SOURCE_LAST_REPORT,
            timings=Timings(queue_ms=lease.grant.queue_ms),
            finished_at=self._timeline.stamp(record.at),
        )
        await self._outbox.append(usage_event(message, source=self._source))

    async def reconciled(self, lease: Unmatched) -> None:
        """Write that a lease was not used, as it would have been had the scheduler seen its ticket expire."""
        grant = LeaseGrant.FromString(lease.grant)
        usage = usage_message(_NOTHING_USED)
        message = UsageRecorded(
            grant=grant,
            usage=usage,
            cost=cost_of(grant.price, usage),
            finish_reason=FinishReason.FINISH_REASON_UNUSED,
            source=UsageSource.USAGE_SOURCE_LAST_REPORT,
            timings=Timings(queue_ms=grant.queue_ms),
            finished_at=grant.expires_at,
        )
        await self._outbox.append(usage_event(message, source=self._source))

    def backlog_s(self) -> float:
        return self._outbox.oldest_age_s

    async def worker_changed(self, record: RecordWorker) -> None:
        message = WorkerChanged(
            worker_id=record.worker_id,
            epoch=record.epoch,
            phase=PHASES[record.phase],
            spec=spec_message(record.spec),
            occurred_at=self._timeline.stamp(record.at),
        )
        await self._outbox.append(worker_event(message, source=self._source))

    async def budget_passed(self, record: RecordPassed) -> None:
        key, first = record.status.budget.key, record.status.first.isoformat()
        message = AuditRecorded(
            tenant_id=key.tenant_id,
            principal="service:scheduler",
            occurred_at=self._timeline.stamp(record.at),
            budget_passed=BudgetPassed(status=status_message(record.status)),
        )
        # Several schedulers see the same budget passed: it is one fact in each period.
        parts = [*key.order, first, str(record.status.budget.limit_nano)]
        await self._outbox.append(audit_event(message, source=self._source, kind="budget-passed", id_parts=parts))

    async def budget_changed(self, key: BudgetKey, *, action: str) -> None:
        caller, request_id = current_identity(), current_request_id()
        message = AuditRecorded(
            tenant_id=key.tenant_id,
            principal=caller.principal,
            key_id=caller.key_id,
            occurred_at=self._timeline.stamp_now(),
            administered=Administered(action=action, resource=f"tenant:{key.tenant_id}/budget:{key}"),
        )
        parts = [request_id, action, *key.order]
        await self._outbox.append(audit_event(message, source=self._source, kind="administered", id_parts=parts))


def _principal() -> str:
    try:
        return current_identity().principal
    except DownstackError:
        return ""
