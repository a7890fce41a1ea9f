"""Logs: one JSON object a line, with ids, without what callers wrote."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from services.kit import context, logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """What was logged; the process's logging is put back afterwards."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers, root.level
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("test", level="info")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers, root.level = before, level
    structlog.reset_defaults()


def test_a_line_has_the_ids_of_the_call(lines: Lines) -> None:
    context.request_id.set("req_1")
    context.tenant.set("t-1")
    structlog.get_logger().info("placed", worker="w-1")
    (line,) = lines()
    assert (line["event"], line["worker"], line["service"]) == ("placed", "w-1", "test")
    assert (line["request_id"], line["tenant"], line["level"]) == ("req_1", "t-1", "info")


def test_what_a_caller_wrote_is_withheld(lines: Lines) -> None:
    structlog.get_logger().info("x", prompt="canary-prompt", messages=["canary", "b"], token=17)
    (line,) = lines()
    assert (line["prompt"], line["messages"], line["token"]) == ("[13 long]", "[2 long]", "[withheld]")


def test_an_exception_is_its_type_and_place(lines: Lines) -> None:
    """The message of an exception may quote a prompt."""
    try:
        try:
            int("canary-text")
        except ValueError as error:
            raise RuntimeError("canary-again") from error
    except RuntimeError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed in a library")
    for line in lines():
        assert [entry["type"] for entry in line["exception"]] == ["RuntimeError", "ValueError"]
        assert "test_an_exception_is_its_type_and_place" in line["exception"][0]["frames"][-1]
    assert len(lines()) == 2
    assert "canary" not in json.dumps(lines())


def test_a_library_logs_through_the_same_door(lines: Lines) -> None:
    logging.getLogger("aiokafka").warning("broker %s is gone", 3)
    logging.getLogger("aiokafka").debug("noise")
    (line,) = lines()
    assert (line["event"], line["level"], line["service"]) == ("broker 3 is gone", "warning", "test")


def test_levels_are_obeyed(lines: Lines) -> None:
    structlog.get_logger().debug("noise")
    structlog.get_logger().warning("signal")
    assert [line["event"] for line in lines()] == ["signal"]
