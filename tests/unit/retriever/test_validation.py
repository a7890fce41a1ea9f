"""What callers may send."""

from collections.abc import Mapping
from typing import Any

import pytest

from services.kit.errors import DownstackError, Reason
from services.retriever.domain.chunking import ChunkingPolicy
from services.retriever.domain.content_hash import content_hash
from services.retriever.domain.entities import DocumentInput, SearchMode
from services.retriever.domain.validation import (
    LIMITS,
    check_document,
    check_document_ids,
    check_name,
    check_query,
    check_text,
)


def document(**changed: Any) -> DocumentInput:
    fields: dict[str, Any] = {
        "document_id": "d1",
        "title": "Title",
        "uri": "file:///a",
        "media_type": "text/plain",
        "content": b"text",
        "metadata": {"lang": "en"},
    }
    return check_document(**(fields | changed))


def query(text: str = "why", *, collections: tuple[str, ...] = ("a",), top_k: int = 10, **other: Any) -> object:
    return check_query(text, collections=collections, top_k=top_k, **other)


@pytest.mark.parametrize("name", ["a", "a-b_9", "x" * 64])
def test_good_names(name: str) -> None:
    """The contract's alphabet and length."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "A", "a b", "a;drop", 'a"', "naïve", "a\n", "\u0430"])
def test_bad_names(name: str) -> None:
    """Quotes, look-alikes and line ends included."""
    with pytest.raises(DownstackError) as caught:
        check_name(name)
    assert caught.value.reason is Reason.PARAM_OUT_OF_RANGE


def test_defaults_of_a_document() -> None:
    """The title is the id, the type is plain text, a byte order mark is no content."""
    plain = document(title="", media_type="", content=b"\xef\xbb\xbftext")
    assert (plain.title, plain.media_type, plain.content) == ("d1", "text/plain", "text")


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"document_id": ""}, Reason.PARAM_OUT_OF_RANGE, "document.document_id"),
        ({"document_id": "é" * 257}, Reason.PARAM_OUT_OF_RANGE, "document.document_id"),
        ({"document_id": "a\x00"}, Reason.PARAM_OUT_OF_RANGE, "document.document_id"),
        ({"title": "x" * 513}, Reason.PARAM_OUT_OF_RANGE, "document.title"),
        ({"title": "a\x00"}, Reason.BAD_ENCODING, "document.title"),
        ({"uri": "x" * 2049}, Reason.PARAM_OUT_OF_RANGE, "document.uri"),
        ({"media_type": "application/pdf"}, Reason.UNSUPPORTED_FEATURE, "document.media_type"),
        ({"content": b""}, Reason.PARAM_OUT_OF_RANGE, "document.content"),
        ({"content": b"x" * (LIMITS.content_bytes + 1)}, Reason.PARAM_OUT_OF_RANGE, "document.content"),
        ({"content": b"a\xff\xfe"}, Reason.BAD_ENCODING, "document.content"),
        ({"content": b"a\xed\xa0\x80"}, Reason.BAD_ENCODING, "document.content"),
        ({"content": b"a\x00b"}, Reason.BAD_ENCODING, "document.content"),
        ({"metadata": {str(n): "" for n in range(33)}}, Reason.PARAM_OUT_OF_RANGE, "document.metadata"),
        ({"metadata": {"": "x"}}, Reason.PARAM_OUT_OF_RANGE, "document.metadata"),
        ({"metadata": {"k": "x" * 257}}, Reason.PARAM_OUT_OF_RANGE, "document.metadata"),
        ({"metadata": {"k": "\x00"}}, Reason.PARAM_OUT_OF_RANGE, "document.metadata"),
    ],
)
def test_bad_documents(changed: Mapping[str, Any], reason: Reason, field: str) -> None:
    """Each mistake has its reason and names its field, and no message quotes the text."""
    with pytest.raises(DownstackError) as caught:
        document(**changed)
    assert caught.value.reason is reason
    assert [violation.field for violation in caught.value.violations] == [field]


def test_all_mistakes_are_told_at_once() -> None:
    """One answer is enough to put a document right."""
    with pytest.raises(DownstackError) as caught:
        document(title="x" * 600, content=b"", metadata={"": ""})
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["document.title", "document.content", "document.metadata"]


@pytest.mark.parametrize(
    ("arguments", "reason", "field"),
    [
        ({"text": ""}, Reason.PARAM_OUT_OF_RANGE, "query"),
        ({"text": " \n"}, Reason.PARAM_OUT_OF_RANGE, "query"),
        ({"text": "é" * 4097}, Reason.PARAM_OUT_OF_RANGE, "query"),
        ({"text": "a\x00"}, Reason.PARAM_OUT_OF_RANGE, "query"),
        ({"collections": ()}, Reason.PARAM_OUT_OF_RANGE, "collections"),
        ({"collections": ("a",) * 17}, Reason.PARAM_OUT_OF_RANGE, "collections"),
        ({"collections": ("a", "B")}, Reason.PARAM_OUT_OF_RANGE, "collections"),
        ({"top_k": 0}, Reason.PARAM_OUT_OF_RANGE, "top_k"),
        ({"top_k": 101}, Reason.PARAM_OUT_OF_RANGE, "top_k"),
        ({"top_k": 33, "top_k_max": 32}, Reason.PARAM_OUT_OF_RANGE, "top_k"),
        ({"metadata": {str(n): "" for n in range(17)}}, Reason.FILTER_NOT_ALLOWED, "metadata"),
        ({"metadata": {"": "x"}}, Reason.FILTER_NOT_ALLOWED, "metadata"),
        ({"metadata": {"k": "\x00"}}, Reason.FILTER_NOT_ALLOWED, "metadata"),
    ],
)
def test_bad_queries(arguments: dict[str, Any], reason: Reason, field: str) -> None:
    """Each mistake has its reason and names its field."""
    with pytest.raises(DownstackError) as caught:
        query(**arguments)
    assert caught.value.reason is reason
    assert [violation.field for violation in caught.value.violations] == [field]


def test_collections_are_searched_once() -> None:
    """Naming one twice is the same as naming it once."""
    checked = check_query("why", collections=["a", "b", "a"], top_k=1, mode=SearchMode.TEXT, metadata={"k": "v"})
    assert checked.collections == ("a", "b")
    assert (checked.top_k, checked.mode, checked.metadata) == (1, SearchMode.TEXT, {"k": "v"})
    assert check_text("why") == "why"


def test_ids_to_delete() -> None:
    """1 to 1000 sound ids, each once."""
    assert check_document_ids(["a", "b", "a"]) == ("a", "b")
    for bad in ([], ["x"] * 1001, ["a", ""]):
        with pytest.raises(DownstackError) as caught:
            check_document_ids(bad)
        assert [violation.field for violation in caught.value.violations] == ["document_ids"]


def test_the_hash_follows_content_and_rules() -> None:
    """What changes passages or embeddings changes it; URI and metadata do not."""
    policy = ChunkingPolicy()

    def hash_of(policy: ChunkingPolicy = policy, model: str = "m", **changed: Any) -> bytes:
        return content_hash(document(**changed), policy=policy, embedding_model=model)

    assert hash_of() == hash_of(uri="file:///b", metadata={})
    others = [
        hash_of(content=b"other"),
        hash_of(title="other"),
        hash_of(media_type="text/markdown"),
        hash_of(document_id="d2"),
        hash_of(model="n"),
        hash_of(ChunkingPolicy(target=100)),
    ]
    assert len({hash_of(), *others}) == len(others) + 1
