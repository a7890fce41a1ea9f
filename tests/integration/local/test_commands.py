"""The command line and the SDK against a running system."""

import json
from pathlib import Path

import pytest
from downstack.errors import ApiError, InvalidRequestError, NotFoundError
from downstack.scheduler.v1 import ledger_pb2

from tests.integration.local.system import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_the_state_has_every_part(system: System) -> None:
    """`status` shows all parts ready, with the address of each service."""
    status = system.json("status")
    assert status["phase"] == "ready"
    assert {"postgres", "kafka", "scheduler", "retriever", "router", "worker-1", "worker-2"} <= set(status["parts"])
    assert {part["state"] for part in status["parts"].values()} == {"ready"}
    assert "router" in system.run("status").stdout


def test_an_answer_by_the_command(system: System) -> None:
    answer = system.json("generate", "Hello there", "--max-tokens", "8")
    assert answer["text"]
    assert answer["finished"]["usage"]["output_total"] == 8
    assert answer["started"]["worker_id"] in {"worker-1", "worker-2"}
    shown = system.run("generate", "Hello there", "--max-tokens", "8").stdout
    assert shown.startswith(answer["text"])
    assert "cost" in shown


def test_an_answer_by_the_client(system: System) -> None:
    """The stream's facts are those of the ledger, and a shared prompt is taken from the cache."""
    prompt = "The same long beginning of a prompt. " * 40
    with system.client() as client:
        first = client.generate(prompt, model="sim-small", max_tokens=4)
        assert "".join(delta.text for delta in first) == first.text
        second = client.generate(prompt, model="sim-small", max_tokens=4)
        list(second)
        assert second.cached_tokens
        assert second.decision is not None
        assert second.decision.reason
        wanted = ledger_pb2.ListUsageRequest(filter=ledger_pb2.UsageFilter(request_id=second.request_id))
        until(lambda: bool(client.ledger.rows(wanted)), why=lambda: f"no ledger row{system.tails()}")
        (row,) = client.ledger.rows(wanted)
        assert second.usage is not None
        for counted in ("input_total", "input_cached", "output_total"):
            assert getattr(row.usage, counted) == getattr(second.usage, counted)
        assert row.cost == second.cost


def test_a_request_can_be_explained(system: System) -> None:
    answer = system.json("generate", "Why?", "--max-tokens", "2")
    explained = system.json("explain", answer["request_id"])
    decision = explained["attempts"][0]["decision"]
    assert decision["worker_id"] == answer["started"]["worker_id"]
    assert decision["reason"] in system.run("explain", answer["request_id"]).stdout.replace("\n", " ")


def test_documents_are_stored_found_and_cited(system: System, tmp_path: Path) -> None:
    (tmp_path / "whale.md").write_text("# Whales\n\nThe blue whale is the largest animal that ever lived.\n")
    (tmp_path / "ant.txt").write_text("An ant carries many times its own weight.\n")
    stored = system.json("ingest", str(tmp_path), "--collection", "animals")
    assert stored["documents"] == 2
    again = system.json("ingest", str(tmp_path), "--collection", "animals")
    assert again["unchanged"] == 2
    hits = system.json("search", "which animal is the largest", "--collection", "animals")["hits"]
    assert hits[0]["citation"]["document_id"] == "whale.md"
    answer = system.json("generate", "Which animal is the largest?", "-c", "animals", "--max-tokens", "4")
    assert "whale.md" in {citation["document_id"] for citation in answer["started"]["citations"]}


def test_keys_are_created_listed_and_revoked(system: System) -> None:
    created = system.json("keys", "create", "test key", "--tenant", "acme", "--principal", "bot", "--scope", "generate")
    key_id = created["key"]["key_id"]
    answer = system.json("generate", "Hello", "--max-tokens", "2", "--api-key", created["secret"])
    assert answer["text"]
    refused = system.run("usage", "--api-key", created["secret"], check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "ACTION_NOT_ALLOWED" in refused.stderr
    assert key_id in {key["key_id"] for key in system.json("keys", "list", "--tenant", "acme")["keys"]}
    assert "revoked_at" in system.json("keys", "revoke", key_id)
    shown = system.run("keys", "list", "--tenant", "acme").stdout
    assert key_id in shown
    assert created["secret"] not in shown


def test_usage_is_added_up(system: System) -> None:
    request_id = system.json("generate", "Count me", "--max-tokens", "3")["request_id"]
    rows = lambda: system.json("usage", "--rows", "1", "--request", request_id)["rows"]  # noqa: E731
    until(lambda: bool(rows()), why=lambda: f"no ledger row{system.tails()}")
    (total,) = system.json("usage")["totals"]
    by_model = system.json("usage", "--by", "model")["totals"]
    assert int(total["requests"]) >= 1
    assert sum(int(group["output_tokens"]) for group in by_model) == int(total["output_tokens"])
    assert "sim-small" in system.run("usage", "--by", "model").stdout


def test_events_can_be_read_along(system: System) -> None:
    request_id = system.json("generate", "Tell everybody", "--max-tokens", "2")["request_id"]
    until(
        lambda: bool(system.json("usage", "--rows", "1", "--request", request_id)["rows"]),
        why=lambda: f"no ledger row{system.tails()}",
    )
    lines = system.run("events", "tail", "--topic", "usage", "--from-beginning", "--max", "1", "--json").stdout
    event = json.loads(lines.splitlines()[0])
    assert event["topic"] == "downstack.usage.v1"
    assert event["attributes"]["type"].endswith("UsageRecorded")
    assert event["payload"]["grant"]["lease_id"]


def test_logs_and_doctor_show_something(system: System) -> None:
    assert system.run("logs", "router", "-n", "5").stdout.strip()
    entries = [json.loads(line) for line in system.run("logs", "-n", "1", "--json").stdout.splitlines()]
    assert {"router", "scheduler", "retriever", "postgres", "kafka"} <= {entry["part"] for entry in entries}
    assert all(entry["entry"]["service"] == "router" for entry in entries if entry["part"] == "router")
    checks = {
        check["name"]: check for check in json.loads(system.run("doctor", "--engine", "sim", "--json").stdout)["checks"]
    }
    assert checks["java"]["ok"]
    assert all(check["sentence"].endswith(".") for check in checks.values())


def test_a_second_start_in_the_same_folder_is_refused(system: System) -> None:
    refused = system.run("up", "--engine", "sim", check=False)
    assert refused.returncode == 1
    assert "runs already" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["generate", "x", "--model", "nobody"], "MODEL_NOT_FOUND"),
        (["generate", "x" * 60_000], "PROMPT_TOO_LONG"),
        (["generate", "x", "--timeout", "0.001"], "DEADLINE"),
        (["generate", ""], "PARAM"),
        (["generate", "x", "--api-key", "ds_live_nonsense"], "AUTH_INVALID"),
        (["search", "x", "-c", "no-such-collection"], "COLLECTION_NOT_FOUND"),
        (["explain", "req_nothing"], "REQUEST_NOT_FOUND"),
        (["keys", "revoke", "nothing0"], "KEY_NOT_FOUND"),
        (["keys", "list", "--tenant", "nobody"], "TENANT_NOT_FOUND"),
        (["keys", "create", "--scope", "fly"], "PARAM"),
    ],
)
def test_a_refused_request_is_one_sentence_with_its_reason(system: System, argv: list[str], reason: str) -> None:
    refused = system.run(*argv, check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    assert reason in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_client_gets_typed_errors(system: System) -> None:
    with system.client() as client:
        with pytest.raises(NotFoundError) as missing:
            client.generate_once("x", model="nobody")
        assert missing.value.reason == "MODEL_NOT_FOUND"
        with pytest.raises(InvalidRequestError) as bad:
            client.generate_once("x", model="sim-small", temperature=9)
        assert bad.value.violations
        with pytest.raises(ApiError):
            client.explain("req_nothing")


def test_top_shows_the_fleet(system: System) -> None:
    """The operator's view: each worker, the wanted replicas, and what is spent."""
    system.run("generate", "Hello", "--max-tokens", "4")
    (line,) = system.run("top", "--once", "--json").stdout.splitlines()
    fleet = json.loads(line)
    assert [worker["phase"] for worker in fleet["workers"]] == ["WORKER_PHASE_READY"] * 2
    (model,) = fleet["models"]
    assert model["replicas_wanted"] >= 1
    page = system.run("top", "--once").stdout
    assert all(worker["worker_id"] in page for worker in fleet["workers"])
