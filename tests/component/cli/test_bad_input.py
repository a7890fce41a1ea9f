"""Whatever is wrong with a call of the command, it says so in one sentence."""

import json
from pathlib import Path

import pytest

from tests.component.cli.command import Command


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nonsense"], "nonsense"),
        (["generate"], "prompt"),
        (["generate", "x", "--max-tokens", "none"], "max-tokens"),
        (["generate", "x", "--max-tokens", "0"], "max-tokens"),
        (["generate", "x", "--temperature", "3"], "temperature"),
        (["up", "--engine", "steam"], "steam"),
        (["usage", "--by", "colour"], "colour"),
        (["search", "x", "-c", "docs", "--mode", "psychic"], "psychic"),
        (["ingest", "x"], "collection"),
        (["events", "tail", "--topic", "gossip"], "gossip"),
        (["keys", "create", "--days", "0"], "days"),
        (["models", "--jsn"], "--jsn"),
    ],
)
def test_a_wrong_call_is_a_usage_error(downstack: Command, argv: list[str], says: str) -> None:
    """Exit status 2, one line, and it names what is wrong."""
    result = downstack(*argv)
    assert result.status == 2
    assert says in result.sentence
    assert result.sentence.endswith("(USAGE)")
    assert result.out == ""


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["generate", "x"], "downstack up"),
        (["status"], "downstack up"),
        (["models", "--target", "127.0.0.1:1"], "API key"),
        (["models", "--target", "127.0.0.1:1", "--api-key", "k"], "nobody answers at 127.0.0.1:1"),
        (["keys", "list", "--target", "127.0.0.1:1"], "admin key"),
        (["up", "--workers", "0"], "--workers"),
        (["up", "--port", "70000"], "--port"),
        (["up", "--models", "nonsense"], "--models"),
        (["ingest", "no-such-file", "-c", "docs"], "no-such-file does not exist"),
        (["ingest", ".", "-c", "docs"], "no text or Markdown files"),
        (["logs", "nobody"], "no log of 'nobody'"),
        (["demo"], "docs is not a folder"),
        (["demo", "--docs", "/nowhere"], "/nowhere is not a folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(downstack: Command, argv: list[str], says: str) -> None:
    """Exit status 1, one line with a reason, and no traceback."""
    result = downstack(*argv)
    assert result.status == 1
    assert says in result.sentence
    assert result.sentence.startswith("downstack: ")
    assert result.sentence.endswith(")")


def test_an_error_is_json_where_json_was_asked_for(downstack: Command) -> None:
    result = downstack("models", "--target", "127.0.0.1:1", "--api-key", "k", "--json")
    error = json.loads(result.err)["error"]
    assert (result.status, error["reason"]) == (1, "UNREACHABLE")
    assert "\n" not in error["message"]


def test_a_data_folder_of_another_version_is_left_alone(downstack: Command, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "DOWNSTACK_LAYOUT").write_text("99\n")
    result = downstack("up", "--engine", "sim", "--data-dir", str(folder))
    assert result.status == 1
    assert "layout 99" in result.sentence
    assert [file.name for file in folder.iterdir()] == ["DOWNSTACK_LAYOUT"]


def test_a_folder_with_other_things_in_it_is_left_alone(downstack: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    result = downstack("up", "--engine", "sim", "--data-dir", str(tmp_path))
    assert result.status == 1
    assert "not a data folder" in result.sentence
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_stopping_what_does_not_run_is_harmless(downstack: Command) -> None:
    assert downstack("down").status == 0
    assert json.loads(downstack("down", "--json").out) == {"stopped": False}


def test_help_is_there_for_every_command(downstack: Command) -> None:
    for command in ("up", "down", "status", "logs", "doctor", "demo", "chat", "generate", "ingest", "search", "usage"):
        result = downstack(command, "--help")
        assert result.status == 0
        assert f"downstack {command}" in result.out
