"""The parts that a supervisor keeps alive: servers from packages, and our services."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from downstack.local.health import is_serving
from downstack.local.layout import LocalError
from downstack.local.process import Command, ServiceProcess, how_it_ended


class Part(Protocol):
    """Something that is started, becomes ready, may die, and is stopped."""

    name: str
    address: str
    metrics: str
    log: Path

    @property
    def pid(self) -> int:
        """Its process and process group. 0: none."""

    async def spawn(self) -> None:
        """Make its process. Raises LocalError."""

    async def until_ready(self) -> None:
        """Return when it serves. Raises LocalError with one sentence when it cannot."""

    async def wait(self) -> str:
        """Return when it has died, with how it ended."""

    async def stop(self, *, budget_s: float) -> None:
        """End it; harmless where it does not run."""


class Server(Protocol):
    """What LocalPostgres and LocalKafka have in common. Their methods block."""

    @property
    def pid(self) -> int | None: ...

    @property
    def log(self) -> Path: ...

    def running(self) -> bool: ...

    def start(self, *, timeout_s: float) -> None: ...

    def stop(self, *, grace_s: float) -> None: ...


class ServerPart:
    """A server from a package."""

    metrics = ""

    def __init__(self, name: str, server: Server, *, timeout_s: float, tick_s: float, address: str = "") -> None:
        self.name = name
        self.address = address
        self.log = server.log
        self._server = server
        self._timeout_s = timeout_s
        self._tick_s = tick_s

    @property
    def pid(self) -> int:
        return self._server.pid or 0

    async def spawn(self) -> None:
        await asyncio.to_thread(self._server.start, timeout_s=self._timeout_s)

    async def until_ready(self) -> None:
        """It was ready when spawn returned."""

    async def wait(self) -> str:
        while self._server.running():  # noqa: ASYNC110 -- a process that is not our child tells nobody
            await asyncio.sleep(self._tick_s)
        return "ended"

    async def stop(self, *, budget_s: float) -> None:
        await asyncio.to_thread(self._server.stop, grace_s=budget_s)


class ServicePart:
    """One of our services, ready when its gRPC health says so."""

    def __init__(
        self,
        name: str,
        *,
        address: str,
        metrics: str,
        log: Path,
        command: Callable[[], Command],
        timeout_s: float,
        tick_s: float,
    ) -> None:
        self.name = name
        self.address = address
        self.metrics = metrics
        self.log = log
        self._command = command
        self._timeout_s = timeout_s
        self._tick_s = tick_s
        self._process: ServiceProcess | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def spawn(self) -> None:
        self._process = await ServiceProcess.start(self._command())

    async def until_ready(self) -> None:
        death = asyncio.create_task(self.wait())
        try:
            async with asyncio.timeout(self._timeout_s):
                while not death.done():
                    if await is_serving(self.address):
                        return
                    await asyncio.wait({death}, timeout=self._tick_s)
        except TimeoutError:
            raise LocalError(f"{self.name} was not ready within {self._timeout_s:.0f} s{self._said()}") from None
        finally:
            death.cancel()
        raise LocalError(f"{self.name} {await death}")

    async def wait(self) -> str:
        assert self._process
        status = await self._process.wait()
        return how_it_ended(status) + self._said()

    def _said(self) -> str:
        said = self._process.last_words() if self._process else ""
        return f": {said}" if said else ""

    async def stop(self, *, budget_s: float) -> None:
        if self._process:
            await self._process.stop(budget_s=budget_s)
