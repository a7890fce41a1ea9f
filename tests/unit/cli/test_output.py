from pathlib import Path

import pytest
from downstack.cli.documents import BATCH_DOCUMENTS, _batches, text_files
from downstack.cli.output import CommandError, count, money
from downstack.types.v1.usage_pb2 import Cost, TokenUsage


@pytest.mark.parametrize(
    ("nano_units", "shown"),
    [(1, "0.000000001 USD"), (1_500_000_000, "1.5 USD"), (0, "0 USD"), (20_000_000_000, "20 USD")],
)
def test_money_is_exact_and_short(nano_units: int, shown: str) -> None:
    assert money(Cost(nano_units=nano_units, currency="USD")) == shown


def test_an_unknown_count_is_not_zero() -> None:
    assert count(TokenUsage(), "input_cached") == "?"
    assert count(TokenUsage(input_cached=0), "input_cached") == "0"


def test_a_folder_is_read_for_text_and_a_named_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/a.md", "in/deep/b.txt", "in/c.png", "d.log"):
        (tmp_path / name).write_text("x")
    found = text_files([tmp_path / "in", tmp_path / "d.log"])
    assert [document_id for _, document_id in found] == ["a.md", "deep/b.txt", "d.log"]


@pytest.mark.parametrize("size", [0, 3 * 1024 * 1024 + 1])
def test_a_file_that_cannot_be_one_document_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    with pytest.raises(CommandError, match="1 byte to 3 MiB") as caught:
        text_files([tmp_path / "a.txt"])
    assert caught.value.reason == "DOCUMENT_SIZE"


def test_batches_keep_order_and_bound(tmp_path: Path) -> None:
    files = []
    for number in range(BATCH_DOCUMENTS + 1):
        (tmp_path / f"{number}.txt").write_text("x")
        files.append((tmp_path / f"{number}.txt", str(number)))
    batches = list(_batches(files))
    assert [len(batch) for batch in batches] == [BATCH_DOCUMENTS, 1]
    assert [file for batch in batches for file in batch] == files
