"""Finding passages: modes, filters, ranks, bounds, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from downstack.retrieval.v1 import retrieval_pb2 as pb

from services.kit.errors import Code, Reason
from services.retriever.adapters.hashing_embedder import HashingEmbedder
from tests.component.retriever.world import World, document, person, retriever_settings, running
from tests.conftest import MakeDatabase

VECTOR, TEXT, HYBRID = pb.SEARCH_MODE_VECTOR, pb.SEARCH_MODE_TEXT, pb.SEARCH_MODE_HYBRID
TEXTS = {
    "bees": "Bees make honey. They dance to show the way to flowers.",
    "ants": "Ants build hills and follow trails.",
    "owls": "Owls hunt at night and hear the smallest mouse.",
}


async def library(world: World) -> None:
    await world.create("zoo")
    await world.ingest("zoo", *(document(name, text, metadata={"name": name}) for name, text in TEXTS.items()))


@pytest.mark.parametrize("mode", [VECTOR, TEXT, HYBRID, pb.SEARCH_MODE_UNSPECIFIED])
async def test_the_best_passage_comes_first(world: World, mode: pb.SearchMode) -> None:
    """Each leg reports its rank and score, and a leg that was not used reports nothing."""
    await library(world)
    hit = (await world.search("how do bees make honey", "zoo", mode=mode))[0]
    assert hit.citation.document_id == "bees"
    assert hit.HasField("vector_rank") == (mode != TEXT) == hit.HasField("vector_similarity")
    assert hit.HasField("text_rank") == (mode != VECTOR) == hit.HasField("text_score")
    assert dict(hit.metadata) == {"name": "bees"}
    assert hit.citation.score > 0


async def test_scores_fall_and_ranks_explain_them(world: World) -> None:
    """The fused score is the sum of the reciprocal ranks."""
    await library(world)
    hits = await world.search("night trails and honey", "zoo")
    assert [hit.citation.mark for hit in hits] == [1, 2, 3]
    scores = [hit.citation.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    for hit in hits:
        ranks = [hit.vector_rank] * hit.HasField("vector_rank") + [hit.text_rank] * hit.HasField("text_rank")
        assert hit.citation.score == pytest.approx(sum(1 / (60 + rank) for rank in ranks))


async def test_words_of_a_question_are_alternatives(world: World) -> None:
    """A passage with one of the words is found, in any form of the word; rare words weigh more."""
    await library(world)
    await world.ingest("zoo", *(document(f"n{n}", f"night number {n}") for n in range(5)))
    found = await world.found("Which animal hunts mice or a mouse in the nights?", "zoo", mode=TEXT)
    assert found[0] == "owls"
    assert set(found) == {"owls", "n0", "n1", "n2", "n3", "n4"}


@pytest.mark.parametrize(
    "query",
    ["the and of", "???", "'; DROP TABLE retrieval.chunks; --", "a & !b | (c <-> d):*", "\\' ''", "語", "x" * 8000],
)
async def test_any_text_is_a_query(world: World, query: str) -> None:
    """Operators and quotes of the search language are text like any other."""
    await library(world)
    assert await world.found(query, "zoo", mode=TEXT) == []
    assert len(await world.found(query, "zoo", mode=VECTOR)) == 3


async def test_filters_keep_what_has_all_pairs(world: World) -> None:
    """Keys and values are data: quotes, operators and look-alikes match only themselves."""
    await world.create("zoo")
    odd = {'k"; --': "{}", "a.b": "1 OR 1=1", "n": ""}
    await world.ingest(
        "zoo",
        document("a", "one bee", metadata={"x": "1", "y": "2"}),
        document("b", "one bee", metadata={"x": "1"} | odd),
    )
    for mode in (VECTOR, TEXT, HYBRID):
        assert await world.found("bee", "zoo", mode=mode, metadata={"x": "1", "y": "2"}) == ["a"]
        assert set(await world.found("bee", "zoo", mode=mode, metadata={"x": "1"})) == {"a", "b"}
        assert await world.found("bee", "zoo", mode=mode, metadata=odd) == ["b"]
        assert await world.found("bee", "zoo", mode=mode, metadata={"y": ""}) == []


async def test_top_k_bounds_the_hits(world: World) -> None:
    """As many as asked for, ten by default, fewer where there are not so many."""
    await world.create("many")
    await world.ingest("many", *(document(f"d{n}", f"honey number {n}") for n in range(120)))
    assert len(await world.search("honey", "many")) == 10
    for top_k in (1, 100):
        for mode in (VECTOR, TEXT, HYBRID):
            hits = await world.search("honey", "many", top_k=top_k, mode=mode)
            assert len({hit.citation.document_id for hit in hits}) == top_k == len(hits)


async def test_several_collections_are_one_search(world: World) -> None:
    """Hits come from all of them and say from which."""
    await library(world)
    await world.create("more")
    await world.ingest("more", document("bees", "Bees again: honey and honey."))
    hits = await world.search("honey", "zoo", "more")
    assert {(hit.citation.collection, hit.citation.document_id) for hit in hits} >= {("zoo", "bees"), ("more", "bees")}
    assert {hit.citation.collection for hit in await world.search("honey", "more")} == {"more"}


async def test_an_empty_collection(world: World) -> None:
    """There is nothing to find, which is no error."""
    await world.create("empty")
    for mode in (VECTOR, TEXT, HYBRID):
        assert await world.search("anything", "empty", mode=mode) == []


BAD: dict[str, tuple[dict[str, Any], Reason]] = {
    "no query": ({"query": ""}, Reason.PARAM_OUT_OF_RANGE),
    "long query": ({"query": "x" * 8193}, Reason.PARAM_OUT_OF_RANGE),
    "NUL": ({"query": "a\x00b"}, Reason.PARAM_OUT_OF_RANGE),
    "no collection": ({"collections": []}, Reason.PARAM_OUT_OF_RANGE),
    "17 collections": ({"collections": [f"c{n}" for n in range(17)]}, Reason.PARAM_OUT_OF_RANGE),
    "bad name": ({"collections": ["Zoo"]}, Reason.PARAM_OUT_OF_RANGE),
    "unknown name": ({"collections": ["nowhere"]}, Reason.COLLECTION_NOT_FOUND),
    "top_k 0": ({"top_k": 0}, Reason.PARAM_OUT_OF_RANGE),
    "top_k 101": ({"top_k": 101}, Reason.PARAM_OUT_OF_RANGE),
    "mode 9": ({"mode": 9}, Reason.PARAM_OUT_OF_RANGE),
    "17 filters": ({"metadata": {str(n): "" for n in range(17)}}, Reason.FILTER_NOT_ALLOWED),
    "filter key": ({"metadata": {"a\x07": "x"}}, Reason.FILTER_NOT_ALLOWED),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_searches(world: World, case: str) -> None:
    """Each has its code and reason, and is not recorded as a reading."""
    fields, reason = BAD[case]
    await world.create("zoo")
    error = await world.refusal("Search", pb.SearchRequest(**({"query": "x", "collections": ["zoo"]} | fields)))
    assert error.reason is reason
    assert error.code in {Code.INVALID_ARGUMENT, Code.NOT_FOUND}
    assert world.audit.read == []


@pytest.mark.parametrize("top_k", [0, 33])
async def test_prepare_has_its_own_bound(world: World, top_k: int) -> None:
    """A prompt takes 32 passages at most."""
    request = pb.PrepareRequest(query="x", collections=["zoo"], top_k=top_k)
    error = await world.refusal("Prepare", request, who=person(service="router"))
    assert error.reason is Reason.PARAM_OUT_OF_RANGE


async def test_vectors_of_another_model_are_not_compared(make_database: MakeDatabase, tmp_path: Path) -> None:
    """A collection made with another model refuses vectors in and out; words still find its passages."""

    class Another(HashingEmbedder):
        model = "another-model"

    address = await make_database("services.retriever")
    settings = retriever_settings(address, tmp_path)
    async with running(settings, address) as world:
        await library(world)
    async with running(settings, address, embedder=Another()) as world:
        for mode in (VECTOR, HYBRID):
            error = await world.refusal("Search", pb.SearchRequest(query="honey", collections=["zoo"], mode=mode))
            assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.EMBEDDING_DIM_MISMATCH)
        parts = [pb.IngestRequest(collection="zoo"), pb.IngestRequest(document=document("x", "text"))]
        assert (await world.refusal("Ingest", iter(parts))).reason is Reason.EMBEDDING_DIM_MISMATCH
        assert await world.found("honey", "zoo", mode=TEXT) == ["bees"]
