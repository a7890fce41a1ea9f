"""Both indexes are used under row-level security, and what they leave out is found all the same."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import numpy as np
import pytest
from downstack.local.postgres import DatabaseAddress
from pgvector import HalfVector
from pgvector.asyncpg import register_vector

from services.kit.identity import Identity
from services.kit.pg.pool import Connection, Database
from services.retriever.adapters.collections_pg import PostgresCollections
from services.retriever.adapters.passages_pg import BY_INDEX, EXACT, HNSW, PostgresPassages, SearchTuning
from services.retriever.domain.entities import Collection, Query, SearchMode
from services.retriever.domain.scan import Scan
from services.retriever.ports import Embeddings, Legs
from tests.conftest import MakeDatabase

ACME, OTHER = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"
ME = Identity(ACME, "ann", (), frozenset(), "key")
CHUNKS, DIMENSIONS, RARE_EVERY = 2000, 384, 200
ALWAYS_HNSW = SearchTuning(exact_max=0, ef_search=200)
_FILL = """
WITH added AS (
  INSERT INTO retrieval.documents (tenant_id, collection_id, document_id, version, content_hash, title, uri, media_type,
                                   content, metadata, chunks)
  SELECT $1, $2, 'd' || n, 1, sha256(n::text::bytea), '', '', 'text/plain', 'x',
         jsonb_build_object('rare', ((n - 1) % $4 = 0)::text), 1 FROM generate_series(1, $3) AS n
  RETURNING document_key, document_id)
INSERT INTO retrieval.chunks (tenant_id, collection_id, document_key, version, ordinal, start_char, end_char, heading,
                              body, embedding)
SELECT $1, $2, d.document_key, 1, 0, 0, 1, '',
       'common words ' || CASE WHEN (n.n - 1) % $4 = 0 THEN 'zebra' ELSE 'horse' END, n.embedding
  FROM unnest($5::halfvec[]) WITH ORDINALITY AS n (embedding, n) JOIN added AS d ON d.document_id = 'd' || n.n
"""


def vectors(count: int, seed: int) -> Embeddings:
    """Points around 50 centres, as embeddings of real text are."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, DIMENSIONS))
    rows = centres[chance.integers(50, size=count)] + 0.7 * chance.normal(size=(count, DIMENSIONS))
    unit: Embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
async def address(make_database: MakeDatabase) -> DatabaseAddress:
    """A tenant with thousands of passages, and one with hundreds."""
    made = await make_database("services.retriever")
    async with Database.open(made.app_dsn, statement_timeout_s=60, init=register_vector) as db:
        for tenant, count in ((ACME, CHUNKS), (OTHER, CHUNKS // 10)):
            who = Identity(tenant, "ann", (), frozenset(), "key")
            collections = PostgresCollections(db, owned_max=10)
            collection, _ = await collections.create(
                who, name="big", private=False, embedding_model="m", dimensions=DIMENSIONS
            )
            rows = [HalfVector(row) for row in vectors(count, seed=1)]
            async with db.transaction(who) as connection:
                await connection.execute(_FILL, tenant, collection.collection_id, count, RARE_EVERY, rows)
                await connection.execute(
                    "UPDATE retrieval.collections SET documents = $1::int, chunks = $1::int, lexemes = 3 * $1::int",
                    count,
                )
    owner = await asyncpg.connect(made.owner_dsn)
    await owner.execute("ANALYZE retrieval.chunks, retrieval.documents")
    await owner.close()
    return made


@pytest.fixture
async def db(address: DatabaseAddress) -> AsyncIterator[Database]:
    async with Database.open(address.app_dsn, init=register_vector) as opened:
        yield opened


@pytest.fixture
async def big(db: Database) -> Collection:
    [collection] = await PostgresCollections(db, owned_max=10).find(ME, ["big"])
    return collection


async def plan_of(connection: Connection, statement: str, *values: Any) -> dict[str, Any]:
    [row] = await connection.fetch(f"EXPLAIN (FORMAT JSON) {statement}", *values)
    plan: dict[str, Any] = json.loads(row[0])[0]["Plan"]
    return plan


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in nodes(child))]


def indexes(plan: dict[str, Any]) -> set[str]:
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def partitions(plan: dict[str, Any]) -> set[str]:
    return {node["Relation Name"] for node in nodes(plan) if node.get("Relation Name", "").startswith("chunks")}


def partition_of(tenant: str) -> str:
    return f"chunks_{tenant.replace('-', '')}"


async def search(
    db: Database, tuning: SearchTuning, collections: Sequence[Collection], *, seed: int, depth: int = 10, **query: Any
) -> Legs:
    wanted = Query("common zebra", tuple(one.name for one in collections), depth, **query)
    async with PostgresPassages(db, tuning).view(ME) as view:
        return await view.search(collections, wanted, embedding=vectors(1, seed)[0], depth=depth)


async def test_the_vector_leg_uses_the_tenants_graph(db: Database, big: Collection) -> None:
    """With policies in force the plan is an HNSW scan of one partition, in the order of distance."""
    async with db.transaction(ME) as connection:
        await connection.execute("SELECT set_config('plan_cache_mode', 'force_custom_plan', true)")
        embedding = HalfVector(vectors(1, seed=2)[0])
        await connection.execute(BY_INDEX)
        plan = await plan_of(connection, HNSW, ACME, [big.collection_id], None, embedding, 100)
        exact = await plan_of(connection, EXACT, ACME, [big.collection_id], None, embedding, 100)
    [ordered] = [node for node in nodes(plan) if "<#>" in node.get("Order By", "")]
    assert ordered["Node Type"] == "Index Scan"
    assert ordered["Index Name"] == f"{partition_of(ACME)}_embedding_idx"
    assert partitions(plan) == partitions(exact) == {partition_of(ACME)}
    assert not any("embedding" in name for name in indexes(exact))


async def test_the_text_leg_uses_the_tenants_words(address: DatabaseAddress, big: Collection) -> None:
    """A search counts a scan of the tenant's GIN index, and none of the other tenant's."""
    connection = await asyncpg.connect(address.app_dsn)
    try:
        before = await scans(connection)
        async with connection.transaction():
            await connection.execute("SELECT set_config('app.tenant_id', $1, true)", ACME)
            await connection.execute("SELECT set_config('app.principal', 'ann', true)")
            rows = await connection.fetch(
                "SELECT chunk_id FROM retrieval.search_text($1, $2, NULL, 'zebra', 100, 1000, 100)",
                ACME,
                [big.collection_id],
            )
        assert len(rows) == CHUNKS // RARE_EVERY
        after = await scans(connection)
    finally:
        await connection.close()
    assert after[partition_of(ACME)] > before[partition_of(ACME)]
    assert after[partition_of(OTHER)] == before[partition_of(OTHER)]


async def scans(connection: Connection) -> dict[str, int]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch(
        "SELECT relname, idx_scan FROM pg_stat_user_indexes"
        " WHERE schemaname = 'retrieval' AND indexrelname LIKE '%lexemes%'"
    )
    return {row["relname"]: row["idx_scan"] for row in rows}


async def test_why_there_is_a_function_for_words(db: Database, big: Collection) -> None:
    """The same condition under a policy ignores the index, because `@@` is not leakproof.

    Should this fail one day, `search_text` is not needed any more.
    """
    async with db.transaction(ME) as connection:
        plan = await plan_of(
            connection,
            "SELECT chunk_id FROM retrieval.chunks WHERE tenant_id = $1 AND lexemes @@ 'zebra'::tsquery",
            ACME,
        )
    assert not any("lexemes" in name for name in indexes(plan))


async def test_the_graph_finds_what_comparing_finds(db: Database, big: Collection) -> None:
    """Recall of the graph against comparing every embedding, over 20 queries."""
    shared = 0
    for seed in range(100, 120):
        near = await search(db, ALWAYS_HNSW, [big], seed=seed, mode=SearchMode.VECTOR)
        exact = await search(db, SearchTuning(), [big], seed=seed, mode=SearchMode.VECTOR)
        assert near.plan is not None
        assert exact.plan is not None
        assert (near.plan.scan, exact.plan.scan) == (Scan.HNSW, Scan.EXACT)
        assert [one.score for one in near.vector] == sorted((one.score for one in near.vector), reverse=True)
        shared += len({one.chunk_id for one in near.vector} & {one.chunk_id for one in exact.vector})
    assert shared / 200 >= 0.95


@pytest.mark.parametrize("exact_max", [0, 20_000])
@pytest.mark.parametrize("depth", [1, 10, 100])
async def test_a_filter_never_costs_hits(db: Database, big: Collection, exact_max: int, depth: int) -> None:
    """With 10 of 2000 passages allowed, min(k, 10) come back from each leg, however little the graph may visit."""
    tuning = SearchTuning(exact_max=exact_max, ef_search=1, scan_max=1)
    allowed = CHUNKS // RARE_EVERY
    legs = await search(db, tuning, [big], seed=7, depth=depth, metadata={"rare": "true"})
    assert len(legs.vector) == len(legs.text) == min(depth, allowed)
    full = await search(db, SearchTuning(), [big], seed=7, depth=allowed, metadata={"rare": "true"})
    assert {one.chunk_id for one in legs.vector} <= {one.chunk_id for one in full.vector}


async def test_rare_words_outweigh_common_ones(db: Database, big: Collection) -> None:
    """Every passage has the common word; those with the rare one come first, and the leg is bounded."""
    legs = await search(db, SearchTuning(), [big], seed=7, depth=50, mode=SearchMode.TEXT)
    rare = await search(db, SearchTuning(), [big], seed=7, depth=50, metadata={"rare": "true"})
    assert len(legs.text) == 50
    assert {one.chunk_id for one in legs.text[: CHUNKS // RARE_EVERY]} == {one.chunk_id for one in rare.text}
