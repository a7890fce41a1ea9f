"""The standard health service: a status for each service and for the process, and streams that end on drain.

grpcio-health-checking brings the contract. Its servicer is not used: it starts as SERVING, its watchers hold a stopping
server for its whole grace, and of several watchers of one service only the first is told.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit import metrics

NAME = "grpc.health.v1.Health"
# The process is alive, whether or not it can serve: for a probe that restarts what has died.
LIVENESS = "liveness"
_OVERALL = ""

_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the base class has no types
    """Statuses of the process (name empty) and of each of its services; NOT_SERVING at first."""

    def __init__(self, services: Iterable[str] = ()) -> None:
        self._names = {_OVERALL, *services}
        self._serving = False
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def serving(self) -> bool:
        """Whether SERVING is reported."""
        return self._serving

    def add(self, services: Iterable[str]) -> None:
        """Reports the same for these services, too."""
        self._names.update(services)

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001  a state, not a mode
        """Reports SERVING or NOT_SERVING. After `drain` it stays NOT_SERVING."""
        self._set(serving=serving and not self._draining)

    def drain(self) -> None:
        """Reports NOT_SERVING for good, and ends the streams of all watchers once they have been told."""
        self._draining = True
        self._set(serving=False)

    def _set(self, *, serving: bool) -> None:
        self._serving = serving
        metrics.SERVING.set(int(serving))
        # Every watcher waits on the event of its time; the next change has an event of its own.
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int:
        if service == LIVENESS:
            return int(_Response.SERVING)
        if service not in self._names:
            return int(_Response.SERVICE_UNKNOWN)
        return int(_Response.SERVING if self._serving else _Response.NOT_SERVING)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The current status; NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return _Response(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The current status, and each change of it."""
        told = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != told:
                yield _Response(status=status)
                told = status
                continue  # it may have changed while it was sent
            if self._draining:
                return
            await changed.wait()


def add_to_server(health: Health, server: grpc.aio.Server) -> None:
    """Serves it."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
