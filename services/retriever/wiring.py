"""Where the retriever's parts meet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from downstack.retrieval.v1.retrieval_pb2_grpc import add_RetrievalServiceServicer_to_server
from pgvector.asyncpg import register_vector

from services.kit.accounts.authenticator import ApiKeyAuthenticator
from services.kit.accounts.cache import KeyCache
from services.kit.clock import SystemClock
from services.kit.errors import DownstackError, StartupError
from services.kit.events.journal import JournalError
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.identity import AssertionAuthenticator, Authenticator, ChainAuthenticator
from services.kit.pg.migrate import MigrationError, migrate
from services.kit.pg.pool import Database
from services.kit.run import Binding, ServiceParts
from services.retriever.adapters import servicer
from services.retriever.adapters.audit import OutboxAuditLog
from services.retriever.adapters.collections_pg import PostgresCollections
from services.retriever.adapters.documents_pg import PostgresDocuments
from services.retriever.adapters.embedder import OnnxEmbedder
from services.retriever.adapters.hashing_embedder import HashingEmbedder
from services.retriever.adapters.model_files import ModelFilesMissingError
from services.retriever.adapters.passages_pg import PostgresPassages, SearchTuning
from services.retriever.adapters.servicer import RetrievalServicer
from services.retriever.app import Retriever
from services.retriever.domain.chunking import ChunkingPolicy
from services.retriever.ingest import IngestBounds, Ingestor
from services.retriever.ports import AuditLog, Embedder
from services.retriever.settings import RetrieverSettings

CLOCK = SystemClock()
MIGRATED = ("services.kit.accounts", "services.retriever")
# The column's; another model needs another column.
_DIMENSIONS = 384
_PING_PERIOD_S = 0.5


@asynccontextmanager
async def wire(settings: RetrieverSettings) -> AsyncIterator[ServiceParts]:
    """The whole retriever, over PostgreSQL, an outbox and Kafka."""
    await _migrate(settings)
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(open_database(settings))
        outbox = await _open_outbox(settings, stack)
        relay = Relay(outbox, bootstrap=settings.kafka_bootstrap)
        embedder = await open_embedder(settings, stack)
        yield ServiceParts(
            bindings=(bind(settings, db, embedder, OutboxAuditLog(outbox, CLOCK)),),
            access=servicer.ACCESS,
            authenticator=_authenticator(settings, db),
            tasks=(relay.run,),
            ready=lambda: _reachable(db),
        )


def bind(settings: RetrieverSettings, db: Database, embedder: Embedder, audit: AuditLog) -> Binding:
    """The service over a database, an embedding model and a record."""
    collections, documents = PostgresCollections(db, owned_max=settings.collections_max), PostgresDocuments(db)
    retriever = Retriever(
        collections=collections,
        documents=documents,
        index=PostgresPassages(db, _tuning(settings)),
        embedder=embedder,
        audit=audit,
        leg_depth=settings.leg_depth,
    )
    ingestor = Ingestor(
        collections=collections,
        documents=documents,
        embedder=embedder,
        audit=audit,
        policy=ChunkingPolicy(target=settings.chunk_tokens, overlap=settings.chunk_overlap_tokens),
        bounds=IngestBounds(documents_max=settings.ingest_documents_max, chunks_max=settings.ingest_chunks_max),
    )
    return Binding(add_RetrievalServiceServicer_to_server, RetrievalServicer(retriever, ingestor), servicer.SERVICE)


def open_database(settings: RetrieverSettings) -> AbstractAsyncContextManager[Database]:
    """The database as the application's role, on connections that speak vectors in binary."""
    return Database.open(
        settings.postgres_dsn.get_secret_value(),
        pool_min=settings.pool_min,
        pool_max=settings.pool_max,
        acquire_timeout_s=settings.acquire_timeout_s,
        statement_timeout_s=settings.statement_timeout_s,
        init=register_vector,
    )


async def open_embedder(settings: RetrieverSettings, stack: AsyncExitStack) -> Embedder:
    """The embedding model of the settings; a StartupError says what it lacks."""
    if settings.embedder == "hashing":
        return HashingEmbedder(dimensions=_DIMENSIONS)
    try:
        embedder = await asyncio.to_thread(
            OnnxEmbedder,
            folder=settings.embedding_folder,
            threads=settings.embedding_threads,
            batch=settings.embedding_batch,
            queries_max=settings.embedding_queue_max,
        )
    except ModelFilesMissingError as error:
        raise StartupError(str(error)) from None
    stack.callback(embedder.close)
    if embedder.dimensions != _DIMENSIONS:
        raise StartupError(f"The embedding model has {embedder.dimensions} dimensions; the tables hold {_DIMENSIONS}.")
    return embedder


async def _migrate(settings: RetrieverSettings) -> None:
    if settings.postgres_owner_dsn is None:
        return
    try:
        for package in MIGRATED:
            await migrate(settings.postgres_owner_dsn.get_secret_value(), package)
    except MigrationError as error:
        raise StartupError(str(error)) from None


async def _open_outbox(settings: RetrieverSettings, stack: AsyncExitStack) -> Outbox:
    try:
        return await stack.enter_async_context(
            Outbox.open(
                settings.outbox_path, max_events=settings.outbox_max_events, max_bytes=settings.outbox_max_bytes
            )
        )
    except JournalError as error:
        raise StartupError(str(error)) from None


def _authenticator(settings: RetrieverSettings, db: Database) -> Authenticator:
    bootstrap = settings.bootstrap_admin_key
    keys = ApiKeyAuthenticator(
        db,
        pepper=settings.key_pepper.get_secret_value().encode(),
        cache=KeyCache(life_s=settings.key_cache_s, clock=CLOCK),
        clock=CLOCK,
        bootstrap_admin_key=bootstrap.get_secret_value() if bootstrap else None,
    )
    return ChainAuthenticator([AssertionAuthenticator(settings.secret_bytes, CLOCK), keys])


def _tuning(settings: RetrieverSettings) -> SearchTuning:
    return SearchTuning(
        exact_max=settings.exact_max_chunks,
        ef_search=settings.hnsw_ef_search,
        scan_max=settings.hnsw_scan_max,
        text_candidates=settings.text_candidates_max,
        text_rescored=settings.text_rescored_max,
    )


async def _reachable(db: Database) -> None:
    while True:
        try:
            await db.ping()
        except DownstackError:
            await asyncio.sleep(_PING_PERIOD_S)
        else:
            return
