"""A running retriever on a real PostgreSQL, called by whomever a test likes."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from downstack.local.postgres import DatabaseAddress
from downstack.retrieval.v1 import retrieval_pb2 as pb
from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.identity import ASSERTION_KEY, AssertionAuthenticator, Identity, sign_assertion
from services.kit.pg.pool import Database
from services.kit.server import ServiceParts, serving
from services.kit.status import error_from_rpc
from services.retriever.adapters import servicer
from services.retriever.adapters.audit import MemoryAuditLog
from services.retriever.adapters.hashing_embedder import HashingEmbedder
from services.retriever.ports import Embedder
from services.retriever.settings import RetrieverSettings
from services.retriever.wiring import bind, open_database

SECRET = "correct-horse-battery"
ACME = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER = "bbbbbbbb-0000-4000-8000-000000000002"
SCOPES = frozenset({"retrieve", "ingest"})


def person(
    principal: str = "ann",
    *,
    tenant: str = ACME,
    groups: Sequence[str] = (),
    scopes: Iterable[str] = SCOPES,
    service: str = "",
) -> Identity:
    return Identity(tenant, principal, tuple(groups), frozenset(scopes), "key00001", service)


def retriever_settings(address: DatabaseAddress, folder: Path, **changed: Any) -> RetrieverSettings:
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "service_secret": SECRET,
        "postgres_dsn": address.app_dsn,
        "postgres_owner_dsn": address.owner_dsn,
        "kafka_bootstrap": "127.0.0.1:1",
        "outbox_path": folder / "outbox.sqlite",
        "key_pepper": "pepper-of-the-tests",
        "embedder": "hashing",
    }
    return RetrieverSettings(**(values | changed))


@dataclass
class World:
    """The parts a test looks at, and calls of the service as somebody."""

    channel: grpc.aio.Channel
    stub: Any
    db: Database
    embedder: HashingEmbedder
    audit: MemoryAuditLog
    address: DatabaseAddress

    async def call(self, method: str, request: Any, *, who: Identity | None = None) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata(who), timeout=30)

    def metadata(self, who: Identity | None = None) -> tuple[tuple[str, str], ...]:
        assertion = sign_assertion(who or person(), secret=SECRET.encode(), now=SystemClock().now())
        return ((ASSERTION_KEY, assertion),)

    async def create(self, name: str, *, private: bool = False, who: Identity | None = None) -> pb.Collection:
        request = pb.CreateCollectionRequest(name=name, private=private)
        return (await self.call("CreateCollection", request, who=who)).collection

    async def ingest(self, name: str, *documents: pb.DocumentInput, who: Identity | None = None) -> pb.IngestResponse:
        parts = [pb.IngestRequest(collection=name), *(pb.IngestRequest(document=one) for one in documents)]
        return await self.call("Ingest", iter(parts), who=who)

    async def search(self, query: str, *names: str, who: Identity | None = None, **fields: Any) -> list[pb.Hit]:
        request = pb.SearchRequest(query=query, collections=names, **fields)
        return list((await self.call("Search", request, who=who)).hits)

    async def found(self, query: str, *names: str, who: Identity | None = None, **fields: Any) -> list[str]:
        return [hit.citation.document_id for hit in await self.search(query, *names, who=who, **fields)]

    async def grant(self, name: str, grantee: str, level: pb.AccessLevel, *, who: Identity | None = None) -> None:
        grant = pb.Grant(grantee=grantee, level=level)
        await self.call("GrantAccess", pb.GrantAccessRequest(collection=name, grant=grant), who=who)

    async def refusal(self, method: str, request: Any, *, who: Identity | None = None) -> DownstackError:
        """What the call is refused with; it must be refused."""
        try:
            answer = await self.call(method, request, who=who)
        except grpc.RpcError as error:
            return error_from_rpc(error)
        raise AssertionError(f"{method} was not refused: {answer!r}")


def document(
    document_id: str, text: str | bytes, *, metadata: Mapping[str, str] | None = None, **fields: str
) -> pb.DocumentInput:
    content = text.encode() if isinstance(text, str) else text
    return pb.DocumentInput(document_id=document_id, content=content, metadata=metadata, **fields)


@asynccontextmanager
async def running(
    settings: RetrieverSettings, address: DatabaseAddress, *, embedder: Embedder | None = None
) -> AsyncIterator[World]:
    """The service in this process, over a real connection; it keeps its record in memory."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings))
        chosen, audit = embedder or HashingEmbedder(), MemoryAuditLog()
        parts = ServiceParts(
            bindings=(bind(settings, db, chosen, audit),),
            access=servicer.ACCESS,
            authenticator=AssertionAuthenticator(SECRET.encode(), SystemClock()),
        )
        server = await stack.enter_async_context(serving(parts, settings))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
        yield World(channel, RetrievalServiceStub(channel), db, chosen, audit, address)  # type: ignore[arg-type]
