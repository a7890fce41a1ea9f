"""Cut a document into passages along its structure, with character offsets for citations."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from services.retriever.domain.markdown import Section, sections_of

PLAIN = "text/plain"
MARKDOWN = "text/markdown"
# Part of the content hash: a change of the rules below makes every document new to the next ingest.
REVISION = 1

Measure = Callable[[Sequence[str]], list[int]]
"""Sizes of texts in the embedding model's tokens, in their order."""

_PARAGRAPH_END = re.compile(r"\n[ \t]*\r?\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")  # noqa: RUF001 - sentence ends of Chinese and Japanese


@dataclass(frozen=True, slots=True)
class ChunkingPolicy:
    """How long passages are.

    target: tokens that a passage may have, the heading not counted.
    overlap: tokens at the end of a passage that the next one of the same paragraph repeats.
    max_chars: characters that a passage may have, whatever its tokens (one endless word is one unknown token).
    """

    target: int = 200
    overlap: int = 25
    max_chars: int = 2000


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: characters `start` to `end` of the document, and the headings above it (`Title > Part`)."""

    ordinal: int
    start: int
    end: int
    text: str
    heading: str = ""

    @property
    def embedded_text(self) -> str:
        """What is embedded and indexed: the headings say what the passage alone may leave out."""
        return f"{self.heading}\n{self.text}" if self.heading else self.text


@dataclass(frozen=True, slots=True)
class _Piece:
    """A sentence or less. `opens` is set on a paragraph's first piece: the size of that paragraph."""

    start: int
    end: int
    size: int
    opens: int = 0


def chunk_document(text: str, *, title: str, media_type: str, policy: ChunkingPolicy, measure: Measure) -> list[Chunk]:
    """The passages of a document in order; none for a document of white space.

    Passages never cross a heading, end between sentences where they can, and together cover all text.
    """
    sections = sections_of(text) if media_type == MARKDOWN else [Section(0, len(text))]
    chunks: list[Chunk] = []
    for section in sections:
        heading = heading_path(title, section.path)
        pieces = _pieces(text, section, policy=policy, measure=measure)
        for start, end in _pack(pieces, policy):
            chunks.append(Chunk(len(chunks), start, end, text[start:end], heading))
    return chunks


def heading_path(title: str, path: Iterable[str]) -> str:
    """`Title > Part > Detail`, without the repetition of a title that is also the first heading."""
    parts = [title.strip(), *(part.strip() for part in path)]
    return " > ".join(part for n, part in enumerate(parts) if part and part not in parts[:n])


def _pack(pieces: Sequence[_Piece], policy: ChunkingPolicy) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    current: list[_Piece] = []
    size = fresh = 0
    for piece in pieces:
        full = bool(current) and not _fits(current, size, piece, policy)
        # A paragraph that would be cut starts a passage of its own, if the passage before it is not tiny.
        cut = piece.opens > 0 and size + piece.opens > policy.target and 2 * size >= policy.target
        if fresh and (full or cut):
            spans.append((current[0].start, current[-1].end))
            current = [] if piece.opens else _tail(current, piece, policy)
            size, fresh = sum(kept.size for kept in current), 0
        current.append(piece)
        size, fresh = size + piece.size, fresh + 1
    if fresh:
        spans.append((current[0].start, current[-1].end))
    return spans


def _fits(current: Sequence[_Piece], size: int, piece: _Piece, policy: ChunkingPolicy) -> bool:
    return size + piece.size <= policy.target and piece.end - current[0].start <= policy.max_chars


def _tail(pieces: Sequence[_Piece], following: _Piece, policy: ChunkingPolicy) -> list[_Piece]:
    """The last whole pieces that the next passage repeats, leaving room for what follows."""
    room = min(policy.overlap, policy.target - following.size)
    tail: list[_Piece] = []
    for piece in reversed(pieces[1:]):
        room -= piece.size
        if room < 0 or following.end - piece.start > policy.max_chars:
            break
        tail.insert(0, piece)
    return tail


def _pieces(text: str, section: Section, *, policy: ChunkingPolicy, measure: Measure) -> list[_Piece]:
    blocks = _split(text, section.start, section.end, _PARAGRAPH_END)
    paragraphs = [_split(text, start, end, _SENTENCE_END) for start, end in blocks]
    sizes = iter(measure([text[start:end] for spans in paragraphs for start, end in spans]))
    pieces: list[_Piece] = []
    for spans in paragraphs:
        whole = [_Piece(start, end, next(sizes)) for start, end in spans]
        small = [part for piece in whole for part in _shrink(text, piece, policy=policy, measure=measure)]
        total = sum(part.size for part in small)
        pieces += [_Piece(part.start, part.end, part.size, total if n == 0 else 0) for n, part in enumerate(small)]
    return pieces


def _split(text: str, start: int, end: int, boundary: re.Pattern[str]) -> list[tuple[int, int]]:
    """The stretches between boundaries, without the white space around them and without empty ones."""
    cuts = [start, *(match.end() for match in boundary.finditer(text, start, end)), end]
    spans = (_trim(text, left, right) for left, right in itertools.pairwise(cuts))
    return [(left, right) for left, right in spans if left < right]


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    stretch = text[start:end]
    return start + len(stretch) - len(stretch.lstrip()), end - (len(stretch) - len(stretch.rstrip()))


def _shrink(text: str, piece: _Piece, *, policy: ChunkingPolicy, measure: Measure) -> list[_Piece]:
    """The piece itself, or parts of it that each fit into a passage, cut between words where there are any."""
    done: list[_Piece] = []
    todo = [piece]
    while todo:
        head = todo.pop()
        length = head.end - head.start
        parts = math.ceil(max(head.size / policy.target, length / policy.max_chars))
        if parts <= 1 or length <= 1:
            done.append(head)
            continue
        spans = _slices(text, head, parts)
        sizes = measure([text[start:end] for start, end in spans])
        todo += [_Piece(start, end, size) for (start, end), size in zip(spans, sizes, strict=True)][::-1]
    return done


def _slices(text: str, piece: _Piece, parts: int) -> list[tuple[int, int]]:
    """About `parts` slices of even length; each ends at the last white space of its second half, if there is any."""
    step = math.ceil((piece.end - piece.start) / parts)
    cuts = [piece.start]
    while piece.end - cuts[-1] > step:
        left, right = cuts[-1] + step // 2, cuts[-1] + step
        space = max(text.rfind(" ", left, right), text.rfind("\t", left, right))
        cuts.append(space + 1 if space > cuts[-1] else right)
    cuts.append(piece.end)
    spans = (_trim(text, start, end) for start, end in itertools.pairwise(cuts))
    return [(start, end) for start, end in spans if start < end]
