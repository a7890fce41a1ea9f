"""What `downstack up` does when a process dies, and that it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from downstack.local.folder import DataFolder
from downstack.local.state import Phase

from tests.integration.local.system import COMMAND, System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_PARTS = ("worker-1", "scheduler", "router", "retriever", "kafka", "postgres")


@pytest.mark.parametrize("name", _PARTS)
def test_a_killed_process_comes_back_and_the_next_request_works(system: System, name: str, tmp_path: Path) -> None:
    """kill -9 of each process in turn: it is started again, and a request by CLI and SDK is answered."""
    part = system.state.parts[name]
    os.kill(part.pid, signal.SIGKILL)
    system.until_back(name, restarts=part.restarts + 1)
    assert system.state.parts[name].pid != part.pid
    assert system.json("generate", f"After {name}", "--max-tokens", "2")["text"]
    with system.client() as client:
        answer = client.generate("And once more", model="sim-small", max_tokens=2)
        assert list(answer)
        assert answer.finish_reason in {"length", "stop"}
    (tmp_path / "note.txt").write_text(f"The {name} came back.\n")
    assert system.json("ingest", str(tmp_path), "-c", "restarts")["documents"] == 1
    assert system.json("search", "what came back", "-c", "restarts")["hits"]


@pytest.fixture
def fresh() -> Iterator[System]:
    with tempfile.TemporaryDirectory(prefix="dsl-", ignore_cleanup_errors=True) as path:
        system = System(DataFolder(Path(path) / "data"))
        try:
            yield system
        finally:
            system.run("down", check=False)


def test_down_leaves_no_process_and_up_again_finds_everything(fresh: System) -> None:
    """Ports, secrets, keys and ledger outlive a stop."""
    fresh.run("up", "--engine", "sim", "--detach")
    before, key = fresh.state, fresh.folder.credentials()
    request_id = fresh.json("generate", "Remember me", "--max-tokens", "2")["request_id"]
    processes = fresh.processes()
    fresh.run("down")
    _, left = psutil.wait_procs(processes, timeout=5)
    assert not left
    assert fresh.state.phase is Phase.STOPPED
    fresh.run("up", "--engine", "sim", "--detach")
    assert fresh.state.endpoints == before.endpoints
    assert fresh.folder.credentials() == key
    rows = lambda: fresh.json("usage", "--rows", "1", "--request", request_id)["rows"]  # noqa: E731
    until(lambda: bool(rows()), why=lambda: f"the ledger forgot{fresh.tails()}")


def test_a_killed_supervisor_leaves_no_process(fresh: System) -> None:
    """kill -9 of the supervisor ends everything, and the next start finds its data unharmed."""
    fresh.run("up", "--engine", "sim", "--detach")
    processes = fresh.processes()
    os.kill(fresh.state.pid, signal.SIGKILL)
    _, left = psutil.wait_procs(processes, timeout=20)
    assert not left
    fresh.run("up", "--engine", "sim", "--detach")
    assert fresh.json("generate", "Still there?", "--max-tokens", "2")["text"]


def test_a_signal_to_the_command_stops_everything(fresh: System) -> None:
    """`up` in the foreground ends by Ctrl-C with exit status 0 and leaves nothing."""
    command = [COMMAND, "up", "--engine", "sim", "--data-dir", str(fresh.folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        assert up.stdout
        lines = []
        for line in up.stdout:
            lines.append(line)
            if line.startswith("Ready after"):
                break
        else:
            pytest.fail("".join(lines) + fresh.tails())
        processes = fresh.processes()[1:]
        up.send_signal(signal.SIGINT)
        rest = up.stdout.read()
    assert up.returncode == 0, rest
    assert "grpcurl" in rest
    assert str(fresh.folder.key_file) in rest
    _, left = psutil.wait_procs(processes, timeout=5)
    assert not left


def test_a_worker_that_cannot_load_its_model_ends_the_start(fresh: System) -> None:
    """One sentence with the cause, exit status 1, and nothing left running."""
    failed = fresh.run("up", "--engine", "sim", "--models", "mine=/no/such/folder", "--detach", check=False)
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert "/no/such/folder" in failed.stderr
    assert not fresh.folder.held()
    pids = {part.pid for part in fresh.state.parts.values() if part.pid}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_port_in_use_is_one_sentence(fresh: System, system: System) -> None:
    port = system.state.endpoints["router"].rpartition(":")[2]
    failed = fresh.run("up", "--engine", "sim", "--port", port, "--detach", check=False)
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == [
        f"downstack: port {port} is in use; give the router another one with --port (LOCAL)"
    ]


def test_the_demo_passes_on_the_simulated_engine(fresh: System) -> None:
    checkout = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "downstack.cli", "demo", "--engine", "sim", "--data-dir", str(fresh.folder.path)],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr + fresh.tails()
    assert "FAILED" not in done.stdout
    assert "a shared prompt is computed once" in done.stdout
