"""The AuditLog over the outbox, and one in memory for tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from downstack.events.v1.events_pb2 import Administered, AuditRecorded, DocumentRead, DocumentsRead
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit import telemetry
from services.kit.clock import Clock
from services.kit.context import current_request_id
from services.kit.events.event import audit_event
from services.kit.events.outbox import Outbox
from services.kit.identity import Identity

SOURCE = "downstack/retriever"


class OutboxAuditLog:
    """Facts go to the outbox, and from there to Kafka."""

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock

    def check_open(self) -> None:
        self._outbox.check_open()

    async def documents_read(
        self, identity: Identity, documents: Sequence[tuple[str, str, int]], *, method: str
    ) -> None:
        read = [DocumentRead(collection=name, document_id=one, version=version) for name, one, version in documents]
        record = self._record(identity)
        record.documents_read.CopyFrom(DocumentsRead(documents=read, method=method))
        await self._append(record, kind="documents_read", detail=method)

    async def administered(self, identity: Identity, *, action: str, resource: str) -> None:
        record = self._record(identity)
        record.administered.CopyFrom(Administered(action=action, resource=resource))
        await self._append(record, kind="administered", detail=f"{action} {resource}")

    def _record(self, identity: Identity) -> AuditRecorded:
        occurred_at = Timestamp()
        occurred_at.FromNanoseconds(int(self._clock.now() * 1e9))
        return AuditRecorded(
            tenant_id=identity.tenant_id,
            request_id=current_request_id(),
            principal=identity.principal,
            key_id=identity.key_id,
            occurred_at=occurred_at,
        )

    async def _append(self, record: AuditRecorded, *, kind: str, detail: str) -> None:
        traceparent = telemetry.trace_headers().get("traceparent", "")
        # A request reads once and changes one thing once; only a retry under the same id tells the same fact again.
        id_parts = ("retriever", record.request_id, detail)
        await self._outbox.append(
            audit_event(record, source=SOURCE, kind=kind, id_parts=id_parts, traceparent=traceparent)
        )


@dataclass
class MemoryAuditLog:
    """Keeps what it is told: (principal, method or action, documents or resource)."""

    read: list[tuple[str, str, Sequence[tuple[str, str, int]]]] = field(default_factory=list)
    changed: list[tuple[str, str, str]] = field(default_factory=list)

    def check_open(self) -> None:
        pass

    async def documents_read(
        self, identity: Identity, documents: Sequence[tuple[str, str, int]], *, method: str
    ) -> None:
        self.read.append((identity.principal, method, documents))

    async def administered(self, identity: Identity, *, action: str, resource: str) -> None:
        self.changed.append((identity.principal, action, resource))
