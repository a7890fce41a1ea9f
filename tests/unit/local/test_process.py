from pathlib import Path

import pytest
from downstack.local.process import cut_log, how_it_ended, last_words


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["one", "two"], "two"),
        (
            ['{"level": "error", "event": "broken", "exception": "Traceback\\nValueError: bad"}', "bye"],
            "broken: ValueError: bad",
        ),
        (["Traceback (most recent call last):", "OSError: no such file", "  hint"], "OSError: no such file"),
        (['{"level": "info", "event": "a"}', '{"level": "info", "event": "b"}'], "b"),
        ([], ""),
    ],
)
def test_the_last_words_are_the_last_failure_or_the_last_line(tmp_path: Path, lines: list[str], words: str) -> None:
    log = tmp_path / "x.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert last_words(log) == words


def test_a_missing_log_has_no_last_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none.log") == ""


def test_an_end_is_told_in_words() -> None:
    assert how_it_ended(-9) == "was ended by SIGKILL"
    assert how_it_ended(3) == "ended with exit status 3"


def test_a_long_log_is_cut_and_its_older_piece_kept(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("a" * 100)
    cut_log(log, max_bytes=200)
    assert log.stat().st_size == 100
    cut_log(log, max_bytes=50)
    assert log.stat().st_size == 0
    assert (tmp_path / "x.log.1").read_text() == "a" * 100
