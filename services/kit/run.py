"""The life of a service's process: settings, logs, metrics, wiring, readiness, signals, drain, exit status."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import structlog
import uvloop

from services.kit import logs
from services.kit.errors import DownstackError, StartupError
from services.kit.metrics import MetricsListener
from services.kit.server import Binding, Server, ServiceParts, Wire
from services.kit.settings import ServiceSettings

__all__ = ["Binding", "ServiceParts", "Wire", "run_service"]

_log = structlog.get_logger()
_HEALTH_PERIOD_S = 1.0


def run_service(name: str, settings_cls: type[ServiceSettings], wire: Wire) -> NoReturn:
    """Runs a service until a signal; the whole of its console script.

    `wire(settings)` is an asynchronous context manager that yields the parts. Exits 0 after a drain, 1 if the service
    could not start or a part of it failed, 2 if the settings are not valid.
    """
    settings = settings_cls.load(sys.argv[1:])
    logs.configure(name, level=settings.log_level)
    life = _Life(settings, wire)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(life.live())
        except (StartupError, DownstackError) as error:
            sys.stderr.write(f"{name}: {error}\n")
            raise SystemExit(1) from None
        except asyncio.CancelledError:
            _log.info("stopped before it was ready")
        except Exception as error:  # noqa: BLE001  the end of the process
            _log.critical("failed", exc_info=error)
            raise SystemExit(1) from None
    raise SystemExit(0)


class _Life:
    """One process: started once, ended by a signal or by the failure of a part."""

    def __init__(self, settings: ServiceSettings, wire: Wire) -> None:
        self._settings = settings
        self._wire = wire
        self._body: asyncio.Task[Any] | None = None
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = False

    async def live(self) -> None:
        """From listening to the end of the drain."""
        self._body = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        async with AsyncExitStack() as stack:
            metrics = _serve_metrics(self._settings.metrics_listen, stack)
            server = Server(self._settings)
            server.listen()
            _log.info("starting", grpc=server.address, metrics=metrics)
            parts = await stack.enter_async_context(self._wire(self._settings))
            await server.start(parts)
            _log.info("listening", grpc=server.address, metrics=metrics)
            self._started = True
            await self._serve(server, parts)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()
        if not self._started and self._body is not None:
            self._body.cancel()

    async def _serve(self, server: Server, parts: ServiceParts) -> None:
        """Runs until a signal or a failure, then drains; raises the failure."""
        tasks = [asyncio.create_task(_life_of(task)) for task in parts.tasks]
        tasks.append(asyncio.create_task(_report_health(server, parts)))
        stopping = asyncio.create_task(self._stop.wait())
        waiting: set[asyncio.Future[Any]] = {*tasks, stopping}
        try:
            while not stopping.done() and not _failures(tasks):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            failures = _failures(tasks)
            _log.info("draining", because="failure" if failures else "signal")
            await server.drain(hurry=self._hurry)
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for failure in failures:
            raise failure


def _serve_metrics(listen: str, stack: AsyncExitStack) -> str:
    if not listen:
        return ""
    listener = MetricsListener.start(listen)
    stack.callback(listener.stop)
    return listener.address


async def _life_of(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def _failures(tasks: list[asyncio.Task[None]]) -> list[BaseException]:
    ended = [task for task in tasks if task.done() and not task.cancelled()]
    return [error for task in ended if (error := task.exception()) is not None]


async def _report_health(server: Server, parts: ServiceParts) -> None:
    """SERVING once the service is ready, and as long as it calls itself healthy."""
    await parts.ready()
    _log.info("ready")
    server.health.set_serving(parts.healthy is None or parts.healthy())
    while parts.healthy is not None:
        await asyncio.sleep(_HEALTH_PERIOD_S)
        serving = parts.healthy()
        if serving != server.health.serving:
            _log.warning("health changed", serving=serving)
            server.health.set_serving(serving)
