"""Prometheus metrics: those of every service, and the listener that serves them."""

from dataclasses import dataclass
from threading import Thread
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from services.kit.errors import StartupError

# From a health check to a long answer, in seconds.
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# OpenTelemetry's rpc.server.call.duration. The histogram's _count is the number of calls.
CALL_DURATION = Histogram(
    "rpc_server_call_duration_seconds",
    "Duration of served calls, from receipt to status.",
    ("rpc_method", "rpc_response_status_code"),
    buckets=DURATION_BUCKETS,
)
IN_FLIGHT = Gauge("downstack_rpc_in_flight", "Calls that are being served.", ("rpc_method",))
REFUSALS = Counter("downstack_rpc_refusals", "Calls that ended with a reason.", ("rpc_method", "reason"))
UNEXPECTED = Counter("downstack_rpc_unexpected", "Exceptions that no code expected.", ("rpc_method", "exception"))
SERVING = Gauge("downstack_serving", "1 while the service reports SERVING.")


@dataclass(frozen=True)
class MetricsListener:
    """Serves the metrics over HTTP from a thread of its own.

    Attributes:
        address: Where it listens, host:port.
    """

    address: str
    _server: WSGIServer
    _thread: Thread

    @classmethod
    def start(cls, listen: str) -> Self:
        """Listens on HOST:PORT; port 0 takes a free one.

        Raises:
            StartupError: The address cannot be listened on.
        """
        host, _, port = listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"))
        except OSError as error:
            raise StartupError(f"Metrics cannot be served on {listen}: {error.strerror}.") from None
        return cls(f"{host}:{server.server_port}", server, thread)

    def stop(self) -> None:
        """Closes the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
