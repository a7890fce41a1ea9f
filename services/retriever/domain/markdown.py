"""Find the sections of a Markdown document and the headings above each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Section:
    """A run of text under one heading: characters `start` to `end`, and the titles of the headings above it."""

    start: int
    end: int
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Heading:
    start: int
    body_start: int
    level: int
    title: str


def sections_of(text: str) -> list[Section]:
    """The sections of `text` in order; together they cover all of it but headings that have no text of their own.

    A section starts at its heading. Only `#` headings count, and none inside a fenced code block.
    """
    headings = list(_headings(text))
    if not headings:
        return [Section(0, len(text))]
    ends = [heading.start for heading in headings[1:]] + [len(text)]
    sections = [Section(0, headings[0].start)] if text[: headings[0].start].strip() else []
    path: list[tuple[int, str]] = []
    for heading, end in zip(headings, ends, strict=True):
        path = [(level, title) for level, title in path if level < heading.level]
        path.append((heading.level, heading.title))
        if text[heading.body_start : end].strip():
            sections.append(Section(heading.start, end, tuple(title for _, title in path if title)))
    return sections or [Section(0, len(text))]


def _headings(text: str) -> Iterator[_Heading]:
    fence, position = "", 0
    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
        elif mark:
            fence = mark[1]
        elif heading := _HEADING.match(line.rstrip("\r\n")):
            yield _Heading(start, position, len(heading[1]), heading[2])
