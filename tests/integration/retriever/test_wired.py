"""The retriever as it is wired for production: API keys, real model, real PostgreSQL, an outbox, no Kafka."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from downstack.events.v1.events_pb2 import AuditRecorded
from downstack.retrieval.v1 import retrieval_pb2 as pb
from downstack.retrieval.v1.retrieval_pb2_grpc import RetrievalServiceStub
from pydantic import SecretStr

from services.kit.accounts.store import AccountStore
from services.kit.clock import SystemClock
from services.kit.errors import Code, Reason, StartupError
from services.kit.events.journal import Journal
from services.kit.pg.pool import Database
from services.kit.server import serving
from services.kit.status import error_from_rpc
from services.retriever.settings import RetrieverSettings
from services.retriever.wiring import wire
from tests.component.retriever.world import document, retriever_settings
from tests.conftest import MakeDatabase

PEPPER = "pepper-of-the-tests"


@asynccontextmanager
async def wired(settings: RetrieverSettings) -> AsyncIterator[Any]:
    async with (
        wire(settings) as parts,
        serving(parts, settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield RetrievalServiceStub(channel)


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def audited(path: Path) -> Iterator[AuditRecorded]:
    for entry in Journal(path).read(100):
        yield AuditRecorded.FromString(entry.event.payload)


async def test_from_a_key_to_citations(make_database: MakeDatabase, tmp_path: Path) -> None:
    """The service migrates an empty database, and what was read and changed waits in the outbox for Kafka."""
    address = await make_database()
    settings = retriever_settings(address, tmp_path, embedder="minilm")
    async with wired(settings) as stub, Database.open(address.app_dsn) as db:
        accounts = AccountStore(db, pepper=PEPPER.encode(), clock=SystemClock())
        await accounts.create_tenant("acme")
        made = await accounts.create_key("acme", name="laptop", principal="ann")
        key = bearer(made.secret)
        await stub.CreateCollection(pb.CreateCollectionRequest(name="bees"), metadata=key)
        texts = {"sweet": "Bees turn nectar into honey.", "rates": "The central bank raised interest rates."}
        parts = [pb.IngestRequest(document=document(name, text)) for name, text in texts.items()]
        done = await stub.Ingest(iter([pb.IngestRequest(collection="bees"), *parts]), metadata=key)
        assert done.chunks == 2
        request = pb.SearchRequest(query="money lending costs", collections=["bees"], top_k=1)
        answer = await stub.Search(request, metadata=key)
        assert [hit.citation.document_id for hit in answer.hits] == ["rates"]
    facts = [record.WhichOneof("fact") for record in audited(settings.outbox_path)]
    assert facts == ["administered", "administered", "documents_read"]
    *_, read = audited(settings.outbox_path)
    assert (read.principal, read.key_id, read.documents_read.method) == ("ann", made.key.key_id, "Search")
    assert [(one.collection, one.document_id) for one in read.documents_read.documents] == [("bees", "rates")]
    assert read.request_id
    assert b"interest" not in read.SerializeToString()


async def test_a_wrong_key(make_database: MakeDatabase, tmp_path: Path) -> None:
    """No key and a wrong key are told apart from a missing right."""
    settings = retriever_settings(await make_database(), tmp_path)
    async with wired(settings) as stub:
        for metadata, reason in (((), Reason.AUTH_MISSING), (bearer("ds_live_x"), Reason.AUTH_INVALID)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListCollections(pb.ListCollectionsRequest(), metadata=metadata)
            assert error_from_rpc(caught.value).reason is reason


async def test_a_full_outbox_takes_no_work(make_database: MakeDatabase, tmp_path: Path) -> None:
    """What could not be recorded is not done."""
    address = await make_database()
    settings = retriever_settings(address, tmp_path, outbox_max_events=2)
    async with wired(settings) as stub, Database.open(address.app_dsn) as db:
        accounts = AccountStore(db, pepper=PEPPER.encode(), clock=SystemClock())
        await accounts.create_tenant("acme")
        key = bearer((await accounts.create_key("acme", name="laptop", principal="ann")).secret)
        for name in ("one", "two"):
            await stub.CreateCollection(pb.CreateCollectionRequest(name=name), metadata=key)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateCollection(pb.CreateCollectionRequest(name="three"), metadata=key)
        error = error_from_rpc(caught.value)
        assert (error.code, error.reason) == (Code.UNAVAILABLE, Reason.JOURNAL_FULL)
        listed = await stub.ListCollections(pb.ListCollectionsRequest(), metadata=key)
        assert [collection.name for collection in listed.collections] == ["one", "two"]


async def test_without_postgresql(make_database: MakeDatabase, tmp_path: Path) -> None:
    """The service starts, is not ready, and says what it lacks."""
    settings = retriever_settings(
        await make_database(),
        tmp_path,
        postgres_dsn=SecretStr("postgresql://nobody@127.0.0.1:1/nowhere"),
        postgres_owner_dsn=None,
    )
    async with wire(settings) as parts:
        assert parts.bindings[0].name == "downstack.retrieval.v1.RetrievalService"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(parts.ready(), 0.3)


async def test_without_the_model(make_database: MakeDatabase, tmp_path: Path) -> None:
    """One sentence says what is missing."""
    settings = retriever_settings(await make_database(), tmp_path, embedder="minilm", embedding_folder=tmp_path)
    with pytest.raises(StartupError, match=r"model\.onnx is missing"):
        async with wire(settings):
            pass
