"""Starts the parts of a local run, keeps them alive, and stops them in order."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from downstack.local.config import LocalConfig
from downstack.local.folder import DataFolder
from downstack.local.layout import LocalError
from downstack.local.parts import Part
from downstack.local.process import cut_log
from downstack.local.restarts import Backoff
from downstack.local.state import PartState, PartStatus, Phase, RunState
from downstack.local.watchdog import Watchdog

_LOG = logging.getLogger(__name__)
_HOUSEKEEPING_S = 5.0
_KILL_S = 2.0  # beyond a service's own drain, before it is killed
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that has to be done once at the start, after other parts are ready."""

    name: str
    after: frozenset[str]
    run: Callable[[], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A part to keep alive, and what has to be ready before its first start."""

    part: Part
    after: frozenset[str] = frozenset()


class Plan(Protocol):
    """What to run: see `plan.LocalPlan`."""

    kept: Sequence[Kept]
    steps: Sequence[Step]
    stop_order: Sequence[frozenset[str]]
    """Groups of parts, first to be stopped first."""

    def state(self) -> RunState:
        """The run before anything is started."""


class Supervisor:
    """One local run, from its start to its end. Use one object once, in the main thread."""

    def __init__(
        self, config: LocalConfig, *, folder: DataFolder, plan: Plan, on_change: Callable[[RunState], None]
    ) -> None:
        self._config = config
        self._folder = folder
        self._plan = plan
        self._on_change = on_change
        self._state = replace(plan.state(), pid=os.getpid(), started_at=time.time(), parts=_waiting(plan))
        self._done = {name: asyncio.Event() for name in self._state.parts}
        self._stop = asyncio.Event()
        self._watchdog = Watchdog()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stop.set()

    async def run(self) -> None:
        """Start everything, keep it alive until asked to stop, then stop it.

        The caller holds the data folder. Raises LocalError with one sentence where a part cannot start; nothing is
        left running then.
        """
        with self._watchdog, _signals(self.stop):
            life = asyncio.create_task(self._live())
            stopping = asyncio.create_task(self._stop.wait())
            try:
                await asyncio.wait({life, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if life.done():
                    life.result()
            except ExceptionGroup as group:
                error = _first(group)
                self._set(phase=Phase.FAILED, error=str(error))
                raise error from None
            finally:
                stopping.cancel()
                await self._end(life)

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for kept in self._plan.kept:
                tasks.create_task(self._keep(kept))
            for step in self._plan.steps:
                tasks.create_task(self._do(step))
            tasks.create_task(self._keep_house())
            await self._wait_for(self._done)
            self._set(phase=Phase.READY, ready_s=time.time() - self._state.started_at)

    async def _wait_for(self, names: Iterable[str]) -> None:
        for name in names:
            await self._done[name].wait()

    async def _do(self, step: Step) -> None:
        await self._wait_for(step.after)
        began = time.monotonic()
        self._set_part(step.name, state=PartState.STARTING)
        try:
            await step.run()
        except LocalError as error:
            self._set_part(step.name, state=PartState.FAILED, detail=str(error))
            raise
        self._ready(step.name, began)

    async def _keep(self, kept: Kept) -> None:
        part, backoff = kept.part, Backoff()
        await self._wait_for(kept.after)
        while True:
            began = time.monotonic()
            end = await self._one_life(part, began)
            delay_s = backoff.after_death(time.monotonic() - began)
            detail = f"{part.name} {end}; starting it again in {delay_s:.1f} s"
            _LOG.warning(detail)
            restarts = self._state.parts[part.name].restarts + 1
            self._set_part(part.name, state=PartState.RESTARTING, restarts=restarts, pid=0, detail=detail)
            await asyncio.sleep(delay_s)

    async def _one_life(self, part: Part, began: float) -> str:
        """From a start to a death; returns how it died. Raises LocalError if it never was ready in this run."""
        self._set_part(part.name, state=PartState.STARTING)
        try:
            await part.spawn()
            self._watchdog.started(part.pid)
            self._set_part(part.name, state=PartState.STARTING, pid=part.pid)
            await part.until_ready()
        except LocalError as error:
            if not self._done[part.name].is_set():
                self._set_part(part.name, state=PartState.FAILED, detail=str(error))
                raise
            await part.stop(budget_s=self._config.drain_s)
            self._watchdog.ended(part.pid)
            return str(error).removeprefix(f"{part.name} ")
        self._ready(part.name, began)
        group = part.pid
        end = await part.wait()
        self._watchdog.ended(group)
        return end

    def _ready(self, name: str, began: float) -> None:
        self._set_part(name, state=PartState.READY, started_s=round(time.monotonic() - began, 2), detail="")
        self._done[name].set()

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            for kept in self._plan.kept:
                cut_log(kept.part.log, max_bytes=self._config.max_log_bytes)

    async def _end(self, life: "asyncio.Task[None]") -> None:
        failed = self._state.phase is Phase.FAILED
        if not failed:
            self._set(phase=Phase.STOPPING)
        life.cancel()
        with suppress(asyncio.CancelledError, ExceptionGroup):
            await life
        parts = {kept.part.name: kept.part for kept in self._plan.kept}
        for group in self._plan.stop_order:
            await asyncio.gather(*(self._stop_part(parts[name]) for name in parts if name in group))
        if not failed:
            self._set(phase=Phase.STOPPED)

    async def _stop_part(self, part: Part) -> None:
        group = part.pid
        await part.stop(budget_s=self._config.drain_s + _KILL_S)
        if not group:
            return
        self._watchdog.ended(group)
        if self._state.parts[part.name].state is not PartState.FAILED:
            self._set_part(part.name, state=PartState.STOPPED, pid=0)

    def _set_part(self, name: str, **changes: object) -> None:
        self._publish(self._state.with_part(name, **changes))

    def _set(self, **changes: object) -> None:
        self._publish(replace(self._state, **changes))  # type: ignore[arg-type]

    def _publish(self, state: RunState) -> None:
        self._state = state
        self._folder.save_state(state)
        self._on_change(state)


def _waiting(plan: Plan) -> dict[str, PartStatus]:
    parts = [kept.part for kept in plan.kept]
    statuses = {p.name: PartStatus(address=p.address, metrics=p.metrics, log=str(p.log)) for p in parts}
    return statuses | {step.name: PartStatus() for step in plan.steps}


@contextmanager
def _signals(react: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, react)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
