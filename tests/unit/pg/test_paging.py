"""Cursors of lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import DownstackError, Reason
from services.kit.pg.paging import page_limit, read_cursor, write_cursor

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@given(_TEXT, _TEXT)
def test_a_cursor_reads_back_as_it_was_written(first: str, second: str) -> None:
    token = write_cursor(first, second)

    if len(token) <= 512:
        assert list(read_cursor(token, parts=2) or ()) == [first, second]


def test_no_cursor_is_the_beginning() -> None:
    assert read_cursor("", parts=1) is None


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "bnVsbA", write_cursor("a", "b"), write_cursor("\0"), "WzFd", "A" * 513, "é"]
)
def test_a_token_that_no_list_returned_is_refused(token: str) -> None:
    with pytest.raises(DownstackError) as caught:
        read_cursor(token, parts=1)

    assert caught.value.reason is Reason.PARAM_OUT_OF_RANGE
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@given(st.text(max_size=60))
def test_any_text_as_a_token_is_read_or_refused(token: str) -> None:
    try:
        position = read_cursor(token, parts=1)
    except DownstackError as error:
        position = [error.reason]

    assert position is None or len(position) == 1


def test_page_sizes_have_a_default_and_a_bound() -> None:
    assert page_limit(0) == 100
    assert page_limit(1000) == 1000
    for size in (-1, 1001):
        with pytest.raises(DownstackError):
            page_limit(size)
