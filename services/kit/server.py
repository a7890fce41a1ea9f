"""A grpc.aio server and what belongs around it: health, reflection, identity, limits, deadlines and drain."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
import structlog

from services.kit import health, reflection
from services.kit.errors import StartupError
from services.kit.health import Health
from services.kit.identity import Access, Authenticator
from services.kit.interceptors import Admission, Deadline, Identification, Interceptor, Step, Telemetry
from services.kit.settings import ServiceSettings

_log = structlog.get_logger()
# Clients ping every 30 s; gRPC's own floor of 300 s would end their connections during a long prefill.
_PING_FLOOR_MS = 10_000
# A caller that vanished is noticed within half a minute.
_HARD_LIMIT_FACTOR = 4
_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
# For handlers that were cut off to put their accounts in order, and then for gRPC to send the last statuses.
_CUT_S = 3.0
_STOP_S = 1.0


@dataclass
class Binding:
    """One gRPC service.

    Attributes:
        add: The generated add_XServicer_to_server.
        servicer: The servicer.
        name: The fully-qualified name of the service.
    """

    add: Callable[[Any, Any], None]
    servicer: object
    name: str


async def _at_once() -> None:
    """A service that is ready when it is wired."""


@dataclass
class ServiceParts:
    """What a service is made of.

    Attributes:
        bindings: Its gRPC services.
        access: Who may call which method, by "/pkg.Service/Method"; what is missing is denied.
        authenticator: Finds out who calls.
        tasks: Run for the life of the process; if one of them fails, the process ends with an error.
        ready: Returns when calls can be served.
        on_drain: Called when calls are no longer accepted, before the running ones are waited for.
        healthy: Asked each second while the service runs; flips health.
        endless: Methods that may run for ever: they get no default deadline, and a drain ends them instead of waiting.
            Methods where both sides stream are so by themselves.
    """

    bindings: Sequence[Binding]
    access: Mapping[str, Access]
    authenticator: Authenticator
    tasks: Sequence[Callable[[], Awaitable[None]]] = ()
    ready: Callable[[], Awaitable[None]] = _at_once
    on_drain: Callable[[], Awaitable[None]] | None = None
    healthy: Callable[[], bool] | None = None
    endless: Collection[str] = ()


Wire = Callable[[Any], AbstractAsyncContextManager[ServiceParts]]

_OWN_METHODS = {
    f"/{health.NAME}/Check": Access.PUBLIC,
    f"/{health.NAME}/Watch": Access.PUBLIC,
    **{f"/{name}/ServerReflectionInfo": Access.PUBLIC for name in reflection.NAMES},
}


class Server:
    """Listens first, is given its parts, starts, serves, drains. Each of these once, in this order."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._admission = Admission(limit=settings.max_in_flight)
        self._identification = Identification()
        self._on_drain: Callable[[], Awaitable[None]] | None = None
        self._drained = False
        deadline = Deadline(default_s=settings.default_deadline_s, is_endless=self._admission.is_endless)
        steps: list[Step] = [Telemetry(), self._admission, self._identification, deadline]
        interceptor = Interceptor(steps, max_request_bytes=settings.max_message_bytes)
        self._server = grpc.aio.server(interceptors=[interceptor], options=_options(settings))
        self.health = Health()
        self.address = ""

    def listen(self) -> None:
        """Takes the port, before anything expensive is done.

        Raises:
            StartupError: The address cannot be listened on.
        """
        host, _, port = self._settings.listen.rpartition(":")
        if not self._settings.reuse_port:
            _check_free(self._settings.listen, host.strip("[]"), int(port))
        try:
            bound = self._server.add_insecure_port(self._settings.listen)
        except RuntimeError:
            raise StartupError(f"gRPC cannot listen on {self._settings.listen}.") from None
        self.address = f"{host}:{bound}"

    async def start(self, parts: ServiceParts) -> None:
        """Serves the parts; health is NOT_SERVING until somebody says otherwise."""
        names = [binding.name for binding in parts.bindings]
        for binding in parts.bindings:
            binding.add(binding.servicer, self._server)
        self.health.add(names)
        health.add_to_server(self.health, self._server)
        if self._settings.reflection:
            reflection.add_to_server([*names, health.NAME], self._server)
        self._identification.access = {**parts.access, **_OWN_METHODS}
        self._identification.authenticator = parts.authenticator
        self._admission.exempt = frozenset(_OWN_METHODS)
        self._admission.endless = frozenset({*parts.endless, f"/{health.NAME}/Watch"})
        self._on_drain = parts.on_drain
        await self._server.start()

    async def drain(self, *, hurry: asyncio.Event | None = None) -> None:
        """Reports NOT_SERVING, lets the running calls finish within the budget, and ends the rest with DRAINING.

        `hurry` cuts the waiting short. Repeating it does nothing.
        """
        if self._drained:
            return
        self._drained = True
        self.health.drain()
        await _within(hurry, asyncio.sleep(self._settings.drain_delay_s))
        await _within(hurry, self._finish())
        await self._admission.cut(budget_s=_CUT_S)
        await self._server.stop(_STOP_S)

    async def _finish(self) -> None:
        started = asyncio.get_running_loop().time()
        refusing = asyncio.create_task(self._admission.drain(budget_s=self._settings.drain_s))
        try:
            async with asyncio.timeout(self._settings.drain_s):
                if self._on_drain is not None:
                    await asyncio.sleep(0)  # new calls are refused from here on
                    await self._on_drain()
                left = await asyncio.shield(refusing)
        except TimeoutError:
            left = self._admission.in_flight
        finally:
            refusing.cancel()
        took_s = round(asyncio.get_running_loop().time() - started, 3)
        _log.info("drained", unfinished_calls=left, took_s=took_s)


@asynccontextmanager
async def serving(parts: ServiceParts, settings: ServiceSettings) -> AsyncIterator[Server]:
    """A server that serves the parts inside the block, ready and SERVING; `tasks` are not run. For tests and tools."""
    server = Server(settings)
    server.listen()
    await server.start(parts)
    try:
        await parts.ready()
        server.health.set_serving(True)
        yield server
    finally:
        await server.drain()


async def _within(hurry: asyncio.Event | None, work: Any) -> None:
    """Awaits the work, or leaves it when there is a hurry."""
    task = asyncio.ensure_future(work)
    waiting = [task, asyncio.ensure_future(hurry.wait())] if hurry else [task]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    if isinstance(results[0], Exception):
        _log.error("drain step failed", exc_info=results[0])


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(settings.reuse_port)),
        # Above the service's own limit, so that what is a little too large is refused with a reason.
        ("grpc.max_receive_message_length", _HARD_LIMIT_FACTOR * settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Not min_recv_ping_interval, as the constant is called in C: that name is ignored.
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_FLOOR_MS),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _check_free(listen: str, host: str, port: int) -> None:
    """Fails in our words where gRPC would print its own."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        raise StartupError(f"gRPC cannot listen on {listen}: {error.strerror}.") from None
