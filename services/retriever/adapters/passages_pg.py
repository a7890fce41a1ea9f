"""Search over passages in PostgreSQL: pgvector for embeddings, full text for words, under row-level security."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgvector import HalfVector

from services.kit.identity import Identity
from services.kit.pg.pool import Connection, Database
from services.retriever.adapters.metrics import FALLBACKS, SCANS
from services.retriever.domain.entities import Collection, Passage, Query, Ranked
from services.retriever.domain.scan import Scan, ScanPlan, choose_scan
from services.retriever.ports import Embeddings, Legs

# A plan for any tenant would have to hold every partition; one for this tenant holds one.
_TUNE = """
SELECT set_config('plan_cache_mode', 'force_custom_plan', true),
       set_config('hnsw.iterative_scan', 'relaxed_order', true),
       set_config('hnsw.ef_search', $1, true), set_config('hnsw.max_scan_tuples', $2, true)
"""
# The planner knows nothing of how far a filtered index scan goes, and little of the index's worth; `choose_scan` does.
BY_INDEX = "SELECT set_config('enable_sort', 'off', true)"
_BY_COST = "SELECT set_config('enable_sort', 'on', true)"
_FILTER = """
SELECT coalesce(array_agg(document_key), '{}') AS documents, coalesce(sum(chunks), 0) AS chunks
  FROM retrieval.documents WHERE tenant_id = $1 AND collection_id = ANY ($2) AND metadata @> $3::jsonb
"""
# `+ 0` hides the order from the index, so that every candidate is compared.
EXACT = """
SELECT c.chunk_id, -(c.embedding <#> $4::halfvec) AS score FROM retrieval.chunks AS c
 WHERE c.tenant_id = $1 AND c.collection_id = ANY ($2::bigint[])
   AND ($3::bigint[] IS NULL OR c.document_key = ANY ($3::bigint[]))
 ORDER BY (c.embedding <#> $4::halfvec) + 0, c.chunk_id LIMIT $5
"""
# The index returns candidates in nearly the right order while it looks for enough of them; the outer query sorts.
HNSW = """
WITH near AS MATERIALIZED (
  SELECT c.chunk_id, c.embedding <#> $4::halfvec AS distance FROM retrieval.chunks AS c
   WHERE c.tenant_id = $1 AND c.collection_id = ANY ($2::bigint[])
     AND ($3::bigint[] IS NULL OR c.document_key = ANY ($3::bigint[]))
   ORDER BY c.embedding <#> $4::halfvec LIMIT $5)
SELECT chunk_id, -distance AS score FROM near ORDER BY distance, chunk_id
"""
_TEXT = "SELECT chunk_id, score FROM retrieval.search_text($1, $2, $3, $4, $5, $6, $7) ORDER BY score DESC, chunk_id"
_PASSAGES = """
SELECT c.chunk_id, k.name AS collection, d.document_id, c.version, d.title, d.uri, c.start_char AS start,
       c.end_char AS end, c.body AS text, d.metadata::text AS metadata
  FROM retrieval.chunks AS c
  JOIN retrieval.documents AS d ON d.tenant_id = c.tenant_id AND d.document_key = c.document_key
  JOIN retrieval.collections AS k ON k.tenant_id = c.tenant_id AND k.collection_id = c.collection_id
 WHERE c.tenant_id = $1 AND c.chunk_id = ANY ($2::bigint[])
"""


@dataclass(frozen=True, slots=True)
class SearchTuning:
    """How far a search looks.

    exact_max: candidates up to which every embedding is compared; above, the HNSW index is used.
    ef_search: candidates that the HNSW index keeps while it looks (pgvector's own bound is 1000).
    scan_max: passages that the HNSW index visits before it gives up, where filters discard many.
    text_candidates: matching passages that a text search ranks at most.
    text_rescored: of these, how many get the exact score.
    """

    exact_max: int = 20_000
    ef_search: int = 200
    scan_max: int = 40_000
    text_candidates: int = 50_000
    text_rescored: int = 300


class PostgresPassages:
    """The PassageIndex."""

    def __init__(self, db: Database, tuning: SearchTuning) -> None:
        self._db = db
        self._tuning = tuning

    @contextlib.asynccontextmanager
    async def view(self, identity: Identity) -> AsyncIterator["_View"]:
        # One snapshot: a document that is replaced meanwhile is found as it was, not lost between two statements.
        async with self._db.transaction(identity, isolation="repeatable_read") as connection:
            await connection.execute(_TUNE, str(self._tuning.ef_search), str(self._tuning.scan_max))
            yield _View(connection, identity.tenant_id, self._tuning)


@dataclass(frozen=True, slots=True)
class _Scope:
    """The passages that one search may return, before permissions: None for documents means all of them."""

    tenant_id: str
    collection_ids: list[int]
    documents: list[int] | None
    candidates: int


class _View:
    def __init__(self, connection: Connection, tenant_id: str, tuning: SearchTuning) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._tuning = tuning

    async def search(
        self, collections: Sequence[Collection], query: Query, *, embedding: Embeddings | None, depth: int
    ) -> Legs:
        scope = await self._scope(collections, query.metadata)
        if scope.candidates == 0:
            return Legs()
        vector: list[Ranked] = []
        plan = None
        if embedding is not None:
            plan = choose_scan(candidates=scope.candidates, exact_max=self._tuning.exact_max)
            vector = await self._near(scope, plan, embedding, depth)
        return Legs(vector, await self._worded(scope, query.text, depth) if query.mode.uses_text else [], plan)

    async def passages(self, chunk_ids: Sequence[int]) -> dict[int, Passage]:
        rows = await self._connection.fetch(_PASSAGES, self._tenant_id, list(chunk_ids))
        return {row["chunk_id"]: _passage(row) for row in rows}

    async def _scope(self, collections: Sequence[Collection], metadata: Mapping[str, str]) -> _Scope:
        ids = [collection.collection_id for collection in collections]
        if not metadata:
            return _Scope(self._tenant_id, ids, None, sum(collection.chunks for collection in collections))
        row = await self._connection.fetchrow(_FILTER, self._tenant_id, ids, json.dumps(dict(metadata)))
        return _Scope(self._tenant_id, ids, row["documents"], row["chunks"])

    async def _near(self, scope: _Scope, plan: ScanPlan, embedding: Embeddings, depth: int) -> list[Ranked]:
        SCANS.labels(plan.scan.value).inc()
        values = (scope.tenant_id, scope.collection_ids, scope.documents, HalfVector(embedding), depth)
        if plan.scan is Scan.HNSW:
            await self._connection.execute(BY_INDEX)
            found = await self._ranked(HNSW, values)
            await self._connection.execute(_BY_COST)
            if len(found) >= min(depth, scope.candidates):
                return found
            FALLBACKS.inc()
        return await self._ranked(EXACT, values)

    async def _worded(self, scope: _Scope, text: str, depth: int) -> list[Ranked]:
        bounds = (depth, self._tuning.text_candidates, max(depth, self._tuning.text_rescored))
        return await self._ranked(_TEXT, (scope.tenant_id, scope.collection_ids, scope.documents, text, *bounds))

    async def _ranked(self, statement: str, values: Sequence[Any]) -> list[Ranked]:
        return [Ranked(row["chunk_id"], row["score"]) for row in await self._connection.fetch(statement, *values)]


def _passage(row: Any) -> Passage:
    return Passage(**{**dict(row.items()), "metadata": json.loads(row["metadata"])})
