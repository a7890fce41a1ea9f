"""Taking in documents: versions, repetition, atomicity, and what is refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import numpy as np
import pytest
from downstack.retrieval.v1 import retrieval_pb2 as pb

from services.kit.errors import Code, Reason
from services.kit.status import error_from_rpc
from services.retriever.adapters.hashing_embedder import HashingEmbedder
from services.retriever.adapters.servicer import SERVICE
from services.retriever.ports import Embeddings
from tests.component.retriever.world import World, document, person, retriever_settings, running
from tests.conftest import MakeDatabase

MARKDOWN = "# Bread\n\n## Dough\n\nFlour and water.\n\n## Oven\n\nVery hot steam.\n"


async def counts(world: World) -> tuple[int, int, int]:
    """Documents, passages, and the collection's own totals of passages."""
    async with world.db.transaction(person()) as connection:
        documents = await connection.fetchval("SELECT count(*) FROM retrieval.documents")
        chunks = await connection.fetchval("SELECT count(*) FROM retrieval.chunks")
        total = await connection.fetchval("SELECT sum(chunks) FROM retrieval.collections")
    return documents, chunks, total


async def test_ingested_is_searchable(world: World) -> None:
    """When the call returns, each passage is found with its place in the document."""
    await world.create("books")
    done = await world.ingest(
        "books", document("bread", MARKDOWN, media_type="text/markdown", title="Bread", uri="x:1")
    )
    assert (done.documents, done.unchanged, done.chunks) == (1, 0, 2)
    [hit] = [hit for hit in await world.search("hot steam", "books") if hit.text_rank == 1]
    citation = hit.citation
    assert (citation.document_id, citation.version, citation.title, citation.uri) == ("bread", 1, "Bread", "x:1")
    assert MARKDOWN[citation.start : citation.end] == citation.text == "## Oven\n\nVery hot steam."
    assert (citation.collection, citation.mark) == ("books", 1)
    assert hit.vector_similarity > 0
    assert hit.text_score > 0


async def test_the_same_content_is_not_embedded_again(world: World) -> None:
    """Its version stays, though its metadata and URI are brought up to date."""
    await world.create("books")
    await world.ingest("books", document("a", "red apple", metadata={"shelf": "1"}))
    embedded = world.embedder.embedded
    again = await world.ingest("books", document("a", "red apple", metadata={"shelf": "2"}, uri="x:2"))
    assert (again.unchanged, again.chunks, again.results[0].version) == (1, 0, 1)
    assert world.embedder.embedded == embedded
    [hit] = await world.search("apple", "books", metadata={"shelf": "2"})
    assert (hit.citation.uri, hit.citation.version) == ("x:2", 1)
    assert await world.found("apple", "books", metadata={"shelf": "1"}) == []


async def test_new_content_is_a_new_version(world: World) -> None:
    """The old passages are gone with the same transaction that brings the new ones."""
    await world.create("books")
    await world.ingest("books", document("a", "red apple"))
    done = await world.ingest("books", document("a", "blue sky\n\n" + "cloud " * 300))
    assert done.results[0].version == 2
    assert {hit.citation.version for hit in await world.search("apple sky cloud", "books")} == {2}
    read = await world.call("GetDocument", pb.GetDocumentRequest(collection="books", document_id="a"))
    assert read.document.content.startswith(b"blue sky")
    assert (read.document.version, read.document.chunks) == (2, done.chunks)
    assert await counts(world) == (1, done.chunks, done.chunks)


async def test_readers_never_see_two_versions(world: World) -> None:
    """Searches during a series of new versions find passages of exactly one version each."""
    await world.create("books")
    texts = [f"common words of edition {n}. " * 60 for n in range(8)]
    await world.ingest("books", document("a", texts[0]))

    async def rewrite() -> None:
        for text in texts[1:]:
            await world.ingest("books", document("a", text))

    writing = asyncio.create_task(rewrite())
    seen = set()
    while not writing.done():
        versions = {hit.citation.version for hit in await world.search("common words", "books")}
        assert len(versions) == 1
        seen |= versions
    await writing
    assert seen <= set(range(1, 9))
    assert {hit.citation.version for hit in await world.search("common words", "books")} == {8}


async def test_two_ingests_of_one_document(world: World) -> None:
    """Both are stored, one after the other, and the totals stay true."""
    await world.create("books")
    results = await asyncio.gather(*(world.ingest("books", document("a", f"text number {n}")) for n in range(6)))
    assert sorted(result.results[0].version for result in results) == [1, 2, 3, 4, 5, 6]
    assert await counts(world) == (1, 1, 1)


async def test_a_document_that_fails_leaves_nothing(make_database: MakeDatabase, tmp_path: Path) -> None:
    """A vector that cannot be stored refuses the call; the version that was live stays live."""

    class Failing(HashingEmbedder):
        async def embed_documents(self, texts: Any) -> Embeddings:
            rows = await super().embed_documents(texts)
            return np.full_like(rows, np.nan) if any("broken" in text for text in texts) else rows

    address = await make_database("services.retriever")
    async with running(retriever_settings(address, tmp_path), address, embedder=Failing()) as world:
        await world.create("books")
        await world.ingest("books", document("a", "red apple"))
        parts = [pb.IngestRequest(collection="books"), pb.IngestRequest(document=document("a", "broken apple"))]
        error = await world.refusal("Ingest", iter(parts))
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, Reason.EMBEDDING_DIM_MISMATCH)
        assert [hit.citation.text for hit in await world.search("apple", "books")] == ["red apple"]
        assert await counts(world) == (1, 1, 1)


async def test_an_error_in_the_database_leaves_nothing(world: World) -> None:
    """Where the last statement of a document's transaction fails, no trace of the document is left."""
    await world.create("books")
    owner = await asyncpg.connect(world.address.owner_dsn)
    await owner.execute("ALTER TABLE retrieval.collections ADD CONSTRAINT full_up CHECK (chunks < 2)")
    parts = [pb.IngestRequest(collection="books")]
    parts += [pb.IngestRequest(document=document(name, f"text of {name}")) for name in ("a", "b")]
    error = await world.refusal("Ingest", iter(parts))
    await owner.execute("ALTER TABLE retrieval.collections DROP CONSTRAINT full_up")
    await owner.close()
    assert error.reason is Reason.INTERNAL  # a constraint of the test's own
    assert await counts(world) == (1, 1, 1)
    assert await world.found("text", "books") == ["a"]


BAD_INGESTS = {
    "no message": ([], Reason.PARAM_CONFLICT),
    "document first": ([pb.IngestRequest(document=document("a", "x"))], Reason.PARAM_CONFLICT),
    "empty message": ([pb.IngestRequest(collection="books"), pb.IngestRequest()], Reason.PARAM_CONFLICT),
    "collection twice": (
        [pb.IngestRequest(collection="books"), pb.IngestRequest(collection="books")],
        Reason.PARAM_CONFLICT,
    ),
    "bad name": ([pb.IngestRequest(collection="a b")], Reason.PARAM_OUT_OF_RANGE),
    "unknown collection": (
        [pb.IngestRequest(collection="nowhere"), pb.IngestRequest(document=document("a", "x"))],
        Reason.COLLECTION_NOT_FOUND,
    ),
}
BAD_DOCUMENTS = {
    "0 bytes": (document("b", ""), Reason.PARAM_OUT_OF_RANGE),
    "broken UTF-8": (document("b", b"\xff\xfe"), Reason.BAD_ENCODING),
    "NUL": (document("b", "a\x00b"), Reason.BAD_ENCODING),
    "oversize": (document("b", b"x" * (3 * 1024 * 1024 + 1)), Reason.PARAM_OUT_OF_RANGE),
    "over the message bound": (document("b", b"x" * (5 * 1024 * 1024)), Reason.MESSAGE_TOO_LARGE),
    "far over the message bound": (document("b", b"x" * (40 * 1024 * 1024)), Reason.MESSAGE_TOO_LARGE),
    "PDF": (document("b", "%PDF", media_type="application/pdf"), Reason.UNSUPPORTED_FEATURE),
    "no id": (document("", "x"), Reason.PARAM_OUT_OF_RANGE),
    "same id": (document("a", "other"), Reason.PARAM_CONFLICT),
}


@pytest.mark.parametrize("case", BAD_INGESTS)
async def test_bad_ingests(world: World, case: str) -> None:
    """Each has its reason, and stores nothing."""
    parts, reason = BAD_INGESTS[case]
    await world.create("books")
    error = await world.refusal("Ingest", iter(parts))
    assert error.reason is reason
    assert (await counts(world))[:2] == (0, 0)


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
async def test_bad_documents(world: World, case: str) -> None:
    """The call is refused with its reason and nothing of its batch is stored; a corrected call then succeeds."""
    bad, reason = BAD_DOCUMENTS[case]
    await world.create("books")
    parts = [pb.IngestRequest(collection="books"), pb.IngestRequest(document=document("a", "good"))]
    error = await world.refusal("Ingest", iter([*parts, pb.IngestRequest(document=bad)]))
    assert error.reason is reason
    assert (await counts(world))[:2] == (0, 0)
    assert (await world.ingest("books", document("a", "good"))).documents == 1


async def test_bytes_that_are_no_message(world: World) -> None:
    """They are refused with a reason, first or later in the stream."""
    ingest = world.channel.stream_unary(f"/{SERVICE}/Ingest")
    await world.create("books")
    good = pb.IngestRequest(collection="books").SerializeToString()
    for parts in ([b"\xff\xff"], [good, b"\xff\xff"]):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(iter(parts), metadata=world.metadata(), timeout=30)
        assert error_from_rpc(caught.value).reason is Reason.BAD_ENCODING
    assert (await counts(world))[:2] == (0, 0)


async def test_an_error_says_how_far_it_came(make_database: MakeDatabase, tmp_path: Path) -> None:
    """Documents of earlier batches are stored; sending all again skips them."""
    address = await make_database("services.retriever")
    async with running(retriever_settings(address, tmp_path, ingest_documents_max=70), address) as world:
        await world.create("books")
        documents = [document(f"d{n}", f"text {n}") for n in range(71)]
        parts = [pb.IngestRequest(collection="books"), *(pb.IngestRequest(document=one) for one in documents)]
        error = await world.refusal("Ingest", iter(parts))
        assert (error.reason, error.metadata["stored_documents"]) == (Reason.STREAM_LIMIT, "64")
        again = await world.ingest("books", *documents[:70])
        assert (again.documents, again.unchanged) == (70, 64)


async def test_a_caller_that_goes_away(world: World) -> None:
    """What was not complete is not stored, and the service goes on."""
    await world.create("books")
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[pb.IngestRequest]:
        yield pb.IngestRequest(collection="books")
        yield pb.IngestRequest(document=document("a", "text"))
        sent.set()
        await asyncio.Event().wait()

    calling = asyncio.create_task(world.call("Ingest", endless()))
    await sent.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert (await counts(world))[:2] == (0, 0)
    assert (await world.ingest("books", document("a", "text"))).documents == 1


async def test_deleting_documents(world: World) -> None:
    """They are gone from search, reading and the totals; deleting what is not there counts nothing."""
    await world.create("books")
    await world.ingest("books", document("a", "red apple"), document("b", "red brick"))
    request = pb.DeleteDocumentsRequest(collection="books", document_ids=["a", "a", "zzz"])
    assert (await world.call("DeleteDocuments", request)).deleted == 1
    assert (await world.call("DeleteDocuments", request)).deleted == 0
    assert await world.found("red", "books") == ["b"]
    error = await world.refusal("GetDocument", pb.GetDocumentRequest(collection="books", document_id="a"))
    assert (error.code, error.reason) == (Code.NOT_FOUND, Reason.DOCUMENT_NOT_FOUND)
    assert await counts(world) == (1, 1, 1)


async def test_a_document_of_white_space(world: World) -> None:
    """It is stored, can be read, and has nothing to find."""
    await world.create("books")
    done = await world.ingest("books", document("blank", " \n "), document("a", "text"))
    assert [result.chunks for result in done.results] == [0, 1]
    read = await world.call("GetDocument", pb.GetDocumentRequest(collection="books", document_id="blank"))
    assert read.document.content == b" \n "
    assert await world.found("text", "books") == ["a"]
