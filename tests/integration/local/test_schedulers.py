"""Two schedulers over one fleet: one is killed under load, nobody notices, and it comes back to the same view."""

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from downstack.client import Client, Generation
from downstack.local.folder import DataFolder
from downstack.scheduler.v1 import ledger_pb2, scheduler_pb2
from downstack.types.v1.chat_pb2 import SamplingParams
from downstack.types.v1.usage_pb2 import FinishReason

from services.router.domain.preference import preferred
from tests.integration.local.system import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_SCHEDULERS = ("scheduler", "scheduler-2")
_AT_ONCE, _STORIES = 6, 4
_PAGE = 1000
_REBUILT_S = 2.0


@pytest.fixture
def shared() -> Iterator[System]:
    """A system with two schedulers and two workers."""
    with tempfile.TemporaryDirectory(prefix="dsl-", ignore_cleanup_errors=True) as path:
        system = System(DataFolder(Path(path) / "data"))
        try:
            system.run("up", "--engine", "sim", "--workers", "2", "--schedulers", "2", "--detach")
            yield system
        finally:
            system.run("down", check=False)


@dataclass
class Load:
    """Callers that ask again as soon as they have their answer, until they are told to stop."""

    client: Client
    model: str

    def __post_init__(self) -> None:
        self.answered: list[str] = []
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._callers: Sequence[Future[None]] = [self._pool.submit(self._ask, number) for number in range(_AT_ONCE)]

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            answer = self.client.generate(f"{number}, {turn}: " + "tell me more " * 20, model=self.model, max_tokens=8)
            assert list(answer)
            assert answer.finish_reason in {"length", "stop"}
            self.answered.append(answer.request_id)

    def go_on(self, requests: int, why: str) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answered) + requests
        until(lambda: len(self.answered) >= wanted or any(each.done() for each in self._callers), why=lambda: why)

    def stop(self) -> list[str]:
        """Every request that was asked, each of them answered; raises what a caller met."""
        self._over.set()
        self._pool.shutdown()
        for each in self._callers:
            each.result()
        return self.answered


def view(system: System, name: str) -> scheduler_pb2.Fleet:
    """The fleet as one scheduler sees it."""
    credentials = system.folder.credentials()
    assert credentials is not None
    address = system.state.parts[name].address
    with Client.connect(address, api_key=credentials.api_key, scheduler=address, timeout_s=10) as client:
        return client.fleet.now()


def figures(fleet: scheduler_pb2.Fleet) -> list[tuple[object, ...]]:
    """What two schedulers must agree on."""
    return [
        (each.worker_id, each.epoch, each.phase, each.leases, each.indexed_blocks, each.index_trusted, each.kv_sequence)
        for each in fleet.workers
    ]


def all_rows(client: Client) -> Sequence[ledger_pb2.UsageRow]:
    rows = client.ledger.rows(ledger_pb2.ListUsageRequest(page_size=_PAGE))
    assert len(rows) < _PAGE
    return rows


@dataclass
class Story:
    """A stream that is read while other things happen."""

    stream: Generation

    def __post_init__(self) -> None:
        self.begun = threading.Event()

    def read(self) -> str:
        for _ in self.stream:
            self.begun.set()
        return self.stream.finish_reason


def test_a_killed_scheduler_costs_no_request_and_comes_back_to_the_same_view(shared: System) -> None:
    """kill -9 of the scheduler that the model's requests go to, under load and with streams that run."""
    (model,) = shared.state.models
    addresses = {shared.state.parts[name].address: name for name in _SCHEDULERS}
    home = addresses[preferred(addresses, model=model)[0]]
    (other,) = set(_SCHEDULERS) - {home}
    with shared.client() as client, ThreadPoolExecutor(_STORIES) as pool:
        long = SamplingParams(ignore_eos=True)
        stories = [
            Story(client.generate(f"A long story, number {number}", model=model, max_tokens=1500, sampling=long))
            for number in range(_STORIES)
        ]
        reading = [pool.submit(story.read) for story in stories]
        assert all(story.begun.wait(10) for story in stories)
        load = Load(client, model)
        load.go_on(20, "nothing is answered")
        part = shared.state.parts[home]
        os.kill(part.pid, signal.SIGKILL)
        load.go_on(20, "nothing is answered without the first scheduler")
        shared.until_back(home, restarts=part.restarts + 1)
        back_at = time.monotonic()
        asked = load.stop()
        until(
            lambda: figures(view(shared, home)) == figures(view(shared, other)),
            why=lambda: f"{figures(view(shared, home))} is not {figures(view(shared, other))}",
        )
        assert time.monotonic() - back_at <= _REBUILT_S
        assert sum(worker.leases for worker in view(shared, home).workers) == _STORIES
        load = Load(client, model)
        load.go_on(20, "nothing is answered after the scheduler came back")
        asked += load.stop()
        assert [each.result() for each in reading] == ["length"] * _STORIES
        asked += [story.stream.request_id for story in stories]
        until(lambda: len(all_rows(client)) >= len(asked), why=lambda: f"rows are missing{shared.tails()}")
        rows = all_rows(client)
    assert len({row.lease_id for row in rows}) == len(rows)
    used = Counter(row.request_id for row in rows if row.finish_reason != FinishReason.FINISH_REASON_UNUSED)
    assert used == Counter(asked), "each request ran once"
