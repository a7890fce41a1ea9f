"""Passages of documents."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retriever.domain.chunking import MARKDOWN, PLAIN, Chunk, ChunkingPolicy, chunk_document, heading_path

WORDS = re.compile(r"\w+|[^\w\s]")


def words(texts: list[str]) -> list[int]:
    return [len(WORDS.findall(text)) for text in texts]


def cut(text: str, *, media_type: str = PLAIN, title: str = "", target: int = 10, overlap: int = 0) -> list[Chunk]:
    policy = ChunkingPolicy(target=target, overlap=overlap, max_chars=200)
    return chunk_document(text, title=title, media_type=media_type, policy=policy, measure=lambda t: words(list(t)))


def test_a_short_document_is_one_passage() -> None:
    """Its offsets leave out the white space around it, and its text is what they point at."""
    text = "\n\n  One sentence. Another one.  \n"
    [chunk] = cut(text)
    assert chunk.text == "One sentence. Another one." == text[chunk.start : chunk.end]
    assert chunk.ordinal == 0


def test_white_space_has_no_passages() -> None:
    """Nothing to find is nothing to store."""
    assert cut(" \n\t\n ") == []
    assert cut("") == []


def test_sentences_are_packed_up_to_the_target() -> None:
    """A passage ends between two sentences, as late as the target allows."""
    chunks = cut("One two three four. Five six seven eight. Nine ten eleven twelve.")
    assert [chunk.text for chunk in chunks] == ["One two three four. Five six seven eight.", "Nine ten eleven twelve."]


def test_a_passage_repeats_the_end_of_the_one_before() -> None:
    """Whole sentences up to the overlap, so that a thought across the border is found from both sides."""
    chunks = cut("Aa bb cc. Dd ee ff. Gg hh ii. Jj kk ll.", target=12, overlap=4)
    assert [chunk.text for chunk in chunks] == ["Aa bb cc. Dd ee ff. Gg hh ii.", "Gg hh ii. Jj kk ll."]


def test_a_paragraph_that_would_be_cut_starts_a_passage() -> None:
    """It is kept whole where the passage before it is not tiny; nothing is repeated across paragraphs."""
    chunks = cut("One two three four five.\n\nSix seven eight. Nine ten eleven.", overlap=4)
    assert [chunk.text for chunk in chunks] == ["One two three four five.", "Six seven eight. Nine ten eleven."]


def test_a_sentence_longer_than_a_passage_is_cut_between_words() -> None:
    """No passage is over the target, and no word is lost."""
    text = " ".join(f"word{n}" for n in range(95))
    chunks = cut(text)
    assert all(words([chunk.text])[0] <= 10 for chunk in chunks)
    assert " ".join(chunk.text for chunk in chunks) == text


def test_an_endless_word_is_cut_by_characters() -> None:
    """It counts as one token and is still bounded."""
    chunks = cut("x" * 1000)
    assert [len(chunk.text) for chunk in chunks] == [200] * 5


def test_markdown_passages_do_not_cross_headings() -> None:
    """Each knows the headings above it; a heading without text of its own is only part of the path."""
    text = "# Guide\n\n## Install\n\nRun it.\n\n## Use\n\nCall it.\n\n### Well\n\nOften.\n"
    chunks = cut(text, media_type=MARKDOWN, title="Guide")
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("Guide > Install", "## Install\n\nRun it."),
        ("Guide > Use", "## Use\n\nCall it."),
        ("Guide > Use > Well", "### Well\n\nOften."),
    ]
    assert chunks[0].embedded_text == "Guide > Install\n## Install\n\nRun it."


def test_hashes_in_plain_text_and_in_code_are_no_headings() -> None:
    """Only Markdown outside of fences has headings."""
    assert [chunk.heading for chunk in cut("# not a heading\ntext")] == [""]
    text = "# Real\n\n```sh\n# a comment\nls\n```\n\nText.\n"
    assert {chunk.heading for chunk in cut(text, media_type=MARKDOWN)} == {"Real"}


@pytest.mark.parametrize(
    ("title", "path", "expected"),
    [
        ("", (), ""),
        ("Title", (), "Title"),
        ("Title", ("Title", "Part"), "Title > Part"),
        ("", ("Part", ""), "Part"),
        ("Title", ("Part", "Detail"), "Title > Part > Detail"),
    ],
)
def test_heading_path(title: str, path: tuple[str, ...], expected: str) -> None:
    """The title and the headings, each once."""
    assert heading_path(title, path) == expected


texts = st.text(alphabet="ab .\n#`é語\t", max_size=600)


@given(text=texts, media_type=st.sampled_from([PLAIN, MARKDOWN]), target=st.integers(1, 12), overlap=st.integers(0, 6))
def test_passages_cover_the_document(text: str, media_type: str, target: int, overlap: int) -> None:
    """Whatever the text: offsets are right and ordered, sizes are bounded, and only headings are left out."""
    chunks = cut(text, media_type=media_type, target=target, overlap=overlap)
    covered = set()
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip()
        assert 0 < len(chunk.text) <= 200
        covered |= set(range(chunk.start, chunk.end))
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)
    if media_type == PLAIN:
        assert all(text[n].isspace() for n in range(len(text)) if n not in covered)


@given(text=texts, target=st.integers(3, 12), overlap=st.integers(0, 6))
def test_passages_keep_to_the_target(text: str, target: int, overlap: int) -> None:
    """Pieces that fit are never packed beyond it."""
    for chunk in cut(text, target=target, overlap=overlap):
        assert words([chunk.text])[0] <= target
