"""Check what callers send. Every refusal names its field; nothing has been done when it is raised."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.kit.errors import DownstackError, FieldViolation, Reason, Violations
from services.retriever.domain.chunking import MARKDOWN, PLAIN
from services.retriever.domain.entities import DocumentInput, Query, SearchMode

_NAME = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one call may carry; the contract's own, in bytes of UTF-8 where they bound text."""

    query_bytes: int = 8 * 1024
    collections: int = 16
    top_k: int = 100
    prepare_top_k: int = 32
    filters: int = 16
    document_id_bytes: int = 512
    title_bytes: int = 512
    uri_bytes: int = 2048
    content_bytes: int = 3 * 1024 * 1024
    metadata_pairs: int = 32
    metadata_bytes: int = 256
    deletions: int = 1000


LIMITS = Limits()


def check_name(name: str, *, field: str = "name") -> str:
    """A sound collection name; a bad one is PARAM_OUT_OF_RANGE."""
    violations = Violations()
    if not _NAME.fullmatch(name):
        violations.add(field, "1 to 64 characters of a-z, 0-9, hyphen and underscore")
    violations.check()
    return name


def check_query(
    text: str,
    *,
    collections: Sequence[str],
    top_k: int,
    top_k_max: int = LIMITS.top_k,
    mode: SearchMode = SearchMode.HYBRID,
    metadata: Mapping[str, str] | None = None,
) -> Query:
    """A sound query over one to `LIMITS.collections` collections, each named once."""
    violations = Violations()
    _check_text(violations, text)
    if not 1 <= len(collections) <= LIMITS.collections:
        violations.add("collections", f"1 to {LIMITS.collections} collections")
    elif not all(_NAME.fullmatch(name) for name in collections):
        violations.add("collections", "1 to 64 characters of a-z, 0-9, hyphen and underscore each")
    if not 1 <= top_k <= top_k_max:
        violations.add("top_k", f"1 to {top_k_max}")
    violations.check()
    filters = _check_filters(metadata or {})
    return Query(text, tuple(dict.fromkeys(collections)), top_k, mode, filters)


def check_text(text: str) -> str:
    """A sound query text."""
    violations = Violations()
    _check_text(violations, text)
    violations.check()
    return text


def check_document(
    *, document_id: str, title: str, uri: str, media_type: str, content: bytes, metadata: Mapping[str, str]
) -> DocumentInput:
    """A sound document with its defaults filled in. Broken UTF-8 and NUL are BAD_ENCODING."""
    check_document_id(document_id)
    violations = Violations()
    if len(title.encode()) > LIMITS.title_bytes:
        violations.add("document.title", f"at most {LIMITS.title_bytes} bytes")
    if len(uri.encode()) > LIMITS.uri_bytes or not _printable(uri):
        violations.add("document.uri", f"at most {LIMITS.uri_bytes} bytes, all printable")
    if not 1 <= len(content) <= LIMITS.content_bytes:
        violations.add("document.content", f"1 to {LIMITS.content_bytes} bytes, but there are {len(content)}")
    _check_metadata(violations, metadata)
    violations.check()
    if media_type not in {"", PLAIN, MARKDOWN}:
        raise _refusal(Reason.UNSUPPORTED_FEATURE, "document.media_type", f"{PLAIN} or {MARKDOWN}", document_id)
    if "\x00" in title:
        raise _refusal(Reason.BAD_ENCODING, "document.title", "text without NUL", document_id)
    text = _decode(content, document_id)
    return DocumentInput(document_id, title or document_id, uri, media_type or PLAIN, text, dict(metadata))


def check_document_id(document_id: str, *, field: str = "document.document_id") -> str:
    """A sound document id."""
    violations = Violations()
    if not 1 <= len(document_id.encode()) <= LIMITS.document_id_bytes or not _printable(document_id):
        violations.add(field, f"1 to {LIMITS.document_id_bytes} bytes, all printable")
    violations.check()
    return document_id


def check_document_ids(document_ids: Sequence[str]) -> tuple[str, ...]:
    """Sound ids of documents to delete, each once."""
    violations = Violations()
    if not 1 <= len(document_ids) <= LIMITS.deletions:
        violations.add("document_ids", f"1 to {LIMITS.deletions} ids")
    violations.check()
    return tuple(dict.fromkeys(check_document_id(one, field="document_ids") for one in document_ids))


def _check_text(violations: Violations, text: str) -> None:
    if not text.strip() or len(text.encode()) > LIMITS.query_bytes or "\x00" in text:
        violations.add("query", f"1 byte to {LIMITS.query_bytes} bytes of text, not all white space, without NUL")


def _check_filters(metadata: Mapping[str, str]) -> Mapping[str, str]:
    if len(metadata) > LIMITS.filters:
        raise _refusal(Reason.FILTER_NOT_ALLOWED, "metadata", f"at most {LIMITS.filters} pairs")
    violations = Violations()
    _check_metadata(violations, metadata, field="metadata")
    violations.check(Reason.FILTER_NOT_ALLOWED)
    return dict(metadata)


def _check_metadata(violations: Violations, metadata: Mapping[str, str], *, field: str = "document.metadata") -> None:
    if len(metadata) > LIMITS.metadata_pairs:
        violations.add(field, f"at most {LIMITS.metadata_pairs} pairs")
    if not all(_sound_pair(key, value) for key, value in metadata.items()):
        violations.add(field, f"printable keys of 1 to {LIMITS.metadata_bytes} bytes, values of no more, without NUL")


def _sound_pair(key: str, value: str) -> bool:
    most = LIMITS.metadata_bytes
    sound_key = _printable(key) and 1 <= len(key.encode()) <= most
    return sound_key and len(value.encode()) <= most and "\x00" not in value


def _decode(content: bytes, document_id: str) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        description = f"UTF-8 text, but byte {error.start} is not"
        raise _refusal(Reason.BAD_ENCODING, "document.content", description, document_id) from None
    if "\x00" in text:
        raise _refusal(Reason.BAD_ENCODING, "document.content", "text without NUL", document_id)
    return text.removeprefix("\ufeff")


def _printable(text: str) -> bool:
    return text == "" or text.isprintable()


def _refusal(reason: Reason, field: str, description: str, document_id: str = "") -> DownstackError:
    metadata = {"document_id": document_id} if document_id else {}
    sentence = f"{field} must be {description}."
    return DownstackError(reason, sentence, metadata=metadata, violations=[FieldViolation(field, description)])
