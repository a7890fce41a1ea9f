"""Folds the events on Kafka into the ledger: usage records and decisions, each once."""

import uuid
from collections import defaultdict
from collections.abc import Sequence

import structlog
from downstack.events.v1.events_pb2 import AuditRecorded, UsageRecorded

from services.kit.events.event import MalformedEventError, ReceivedEvent
from services.kit.events.topics import AUDIT, USAGE
from services.scheduler.adapters.ledger_wire import decision_entry_of, usage_entry_of
from services.scheduler.domain.ledger import DecisionEntry, UsageEntry
from services.scheduler.ports import LedgerStore, Meter

_log = structlog.get_logger(__name__)


class LedgerConsumer:
    """Handles batches of both topics. A batch that comes again changes nothing."""

    def __init__(self, store: LedgerStore, *, meter: Meter) -> None:
        self._store = store
        self._meter = meter

    async def handle(self, events: Sequence[ReceivedEvent]) -> None:
        """Add the rows of a batch, one transaction for each tenant and table.

        Raises:
            MalformedEventError: An event is no record of ours; alone in its batch it is put aside.
            DownstackError: DEPENDENCY_UNAVAILABLE; the batch comes again.
        """
        usage: dict[str, list[UsageEntry]] = defaultdict(list)
        decisions: dict[str, list[DecisionEntry]] = defaultdict(list)
        for received in events:
            if received.event.topic == USAGE.name:
                record = received.decode(UsageRecorded)
                usage[_tenant(record.grant.tenant_id, record.grant.lease_id)].append(usage_entry_of(record))
            elif received.event.topic == AUDIT.name:
                fact = received.decode(AuditRecorded)
                if fact.HasField("decided"):
                    tenant_id = _tenant(fact.tenant_id, fact.decided.lease_id)
                    _check_grant(fact)
                    decisions[tenant_id].append(decision_entry_of(fact))
        # In the order of the tenants, so that two consumers that add the same rows wait for each other in one order.
        for tenant_id, entries in sorted(usage.items()):
            late = await self._store.add_usage(tenant_id, sorted(entries, key=lambda entry: entry.lease_id))
            for entry in late:
                self._meter.late(entry.source)
                _log.warning("late usage record", lease=entry.lease_id, source=entry.source, finish=entry.finish)
        for tenant_id, decided in sorted(decisions.items()):
            await self._store.add_decisions(tenant_id, decided)


def _tenant(tenant_id: str, lease_id: str) -> str:
    try:
        uuid.UUID(tenant_id)
    except ValueError:
        raise MalformedEventError("the tenant is no UUID") from None
    if not 1 <= len(lease_id.encode()) <= 256:
        raise MalformedEventError("there is no lease")
    return str(uuid.UUID(tenant_id))


def _check_grant(fact: AuditRecorded) -> None:
    """A grant closes a lease one day, so it must be the decision's own."""
    grant, decided = fact.grant, fact.decided
    if fact.HasField("grant") and (grant.lease_id, grant.tenant_id) != (decided.lease_id, fact.tenant_id):
        raise MalformedEventError("the grant is another lease's than the decision")
