import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from downstack.local.folder import DataFolder
from downstack.local.layout import LocalError
from downstack.local.state import PartState, Phase, RunState
from downstack.local.supervisor import Supervisor

from tests.component.local.runs import StandInPlan, alive, config_for


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.claim()
    return folder


class Watcher:
    """Sees every state, and lets a test wait for one."""

    def __init__(self) -> None:
        self.states: list[RunState] = []
        self._changed = asyncio.Event()

    def see(self, state: RunState) -> None:
        self.states.append(state)
        self._changed.set()

    async def until(self, true_of: Callable[[RunState], bool]) -> RunState:
        async with asyncio.timeout(30):
            while not (self.states and true_of(self.states[-1])):
                self._changed.clear()
                await self._changed.wait()
        return self.states[-1]


@asynccontextmanager
async def running(folder: DataFolder, plan: StandInPlan) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    supervisor = Supervisor(config_for(folder.path), folder=folder, plan=plan, on_change=watcher.see)
    life = asyncio.create_task(supervisor.run())
    try:
        yield watcher
    finally:
        supervisor.stop()
        await life


def ready(state: RunState) -> bool:
    return state.phase is Phase.READY


async def test_everything_becomes_ready_and_is_on_record(folder: DataFolder) -> None:
    """Parts and steps that wait for others start after them, and the state file has what is running."""
    order: list[str] = []

    async def step() -> None:
        order.extend(name for name, part in watcher.states[-1].parts.items() if part.state is PartState.READY)

    plan = StandInPlan(
        folder,
        config_for(folder.path),
        {"first": "plain", "second": "plain"},
        after={"second": {"step"}, "step": {"first"}},
        steps={"step": step},
    )
    async with running(folder, plan) as watcher:
        state = await watcher.until(ready)
        assert order == ["first"]
        assert folder.state() == state
        assert all(part.pid for name, part in state.parts.items() if name != "step")
    stopped = folder.state()
    assert stopped is not None
    assert stopped.phase is Phase.STOPPED
    assert not any(alive(part.pid) for part in state.parts.values() if part.pid)


async def test_a_killed_part_is_started_again(folder: DataFolder) -> None:
    """What dies by kill -9 comes back as another process, and the count of restarts says so."""
    plan = StandInPlan(folder, config_for(folder.path), {"one": "plain", "two": "plain"})
    async with running(folder, plan) as watcher:
        before = (await watcher.until(ready)).parts
        os.kill(before["one"].pid, signal.SIGKILL)
        state = await watcher.until(
            lambda state: state.parts["one"].restarts == 1 and state.parts["one"].state is PartState.READY
        )
        assert state.parts["one"].pid not in {0, before["one"].pid}
        assert state.parts["two"] == before["two"]
    died = [s.parts["one"].detail for s in watcher.states if s.parts["one"].state is PartState.RESTARTING]
    assert "SIGKILL" in died[0]


async def test_a_part_that_cannot_start_ends_the_run(folder: DataFolder) -> None:
    """The error has the last error of its log, and nothing is left running."""
    plan = StandInPlan(folder, config_for(folder.path), {"good": "plain", "bad": "broken"})
    watcher = Watcher()
    supervisor = Supervisor(config_for(folder.path), folder=folder, plan=plan, on_change=watcher.see)
    with pytest.raises(LocalError, match="bad ended with exit status 3: no such model"):
        await supervisor.run()
    assert watcher.states[-1].phase is Phase.FAILED
    assert "no such model" in watcher.states[-1].error
    pids = {part.pid for state in watcher.states for part in state.parts.values() if part.pid}
    assert not any(map(alive, pids))


async def test_a_step_that_fails_ends_the_run(folder: DataFolder) -> None:
    async def step() -> None:
        raise LocalError("the tables do not fit")

    plan = StandInPlan(folder, config_for(folder.path), {"one": "plain"}, after={"step": {"one"}}, steps={"step": step})
    watcher = Watcher()
    supervisor = Supervisor(config_for(folder.path), folder=folder, plan=plan, on_change=watcher.see)
    with pytest.raises(LocalError, match="the tables do not fit"):
        await supervisor.run()
    last = watcher.states[-1]
    assert (last.parts["step"].state, last.parts["one"].state) == (PartState.FAILED, PartState.STOPPED)
    assert last.error == last.parts["step"].detail


async def test_a_part_that_ignores_the_signal_is_killed_within_the_budget(folder: DataFolder) -> None:
    plan = StandInPlan(folder, config_for(folder.path), {"deaf": "stubborn"})
    async with running(folder, plan) as watcher:
        pid = (await watcher.until(ready)).parts["deaf"].pid
        began = asyncio.get_running_loop().time()
    assert not alive(pid)
    assert asyncio.get_running_loop().time() - began < 10


async def test_stopping_during_the_start_leaves_nothing(folder: DataFolder) -> None:
    never = asyncio.Event()

    async def step() -> None:
        await never.wait()

    plan = StandInPlan(folder, config_for(folder.path), {"one": "plain"}, steps={"step": step})
    async with running(folder, plan) as watcher:
        state = await watcher.until(lambda s: "one" in s.parts and s.parts["one"].state is PartState.READY)
    assert watcher.states[-1].phase is Phase.STOPPED
    assert not alive(state.parts["one"].pid)


_SUPERVISE = """
import asyncio, sys
from pathlib import Path
from downstack.local.folder import DataFolder
from downstack.local.supervisor import Supervisor
from tests.component.local.runs import StandInPlan, config_for
folder = DataFolder(Path(sys.argv[1]))
plan = StandInPlan(folder, config_for(folder.path), {"one": "plain", "two": "parent"})
with folder.hold():
    run = Supervisor(config_for(folder.path), folder=folder, plan=plan, on_change=lambda s: print(s.phase, flush=True))
    asyncio.run(run.run())
"""


def test_a_killed_supervisor_leaves_no_process(folder: DataFolder) -> None:
    """After kill -9 its services end, and so do the processes that they have started."""
    path = os.pathsep.join(sys.path)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", _SUPERVISE, str(folder.path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert supervisor.stdout
    assert any(line.strip() == "ready" for line in supervisor.stdout)
    assert folder.held()
    descendants = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(descendants) == 4  # two services, a grandchild, the guard
    supervisor.kill()
    supervisor.wait()
    _, left = psutil.wait_procs(descendants, timeout=15)
    assert not left
    assert not folder.held()
