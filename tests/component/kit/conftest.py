"""A real server with an echo service whose handlers each test brings along."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.kit.clock import SystemClock
from services.kit.identity import Access, AssertionAuthenticator
from services.kit.server import Binding, Server, ServiceParts, serving
from services.kit.settings import ServiceSettings

SERVICE = "test.v1.Echo"
SECRET = "correct-horse-battery"

_HANDLERS = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "stream": grpc.unary_stream_rpc_method_handler,
    "collect": grpc.stream_unary_rpc_method_handler,
    "chat": grpc.stream_stream_rpc_method_handler,
}


@dataclass
class Echo:
    """The running server and a channel to it, without retries of its own.

    Handlers are named by their kind: `unary`, `stream`, `collect`, `chat`, and freely after that (`unary_slow`).
    """

    server: Server
    channel: grpc.aio.Channel
    settings: ServiceSettings

    def method(self, name: str) -> Callable[..., Any]:
        """The client's side of a handler."""
        make = {
            "unary": self.channel.unary_unary,
            "stream": self.channel.unary_stream,
            "collect": self.channel.stream_unary,
            "chat": self.channel.stream_stream,
        }[name.partition("_")[0]]
        path = f"/{SERVICE}/{name}"
        call: Callable[..., Any] = make(path, StringValue.SerializeToString, StringValue.FromString)
        return call


@dataclass
class Serve:
    """Starts echo servers."""

    authenticator: Any = field(
        default_factory=lambda: AssertionAuthenticator(SECRET.encode(), SystemClock()),
    )

    def __call__(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        *,
        access: Mapping[str, Access] | None = None,
        parts: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AbstractAsyncContextManager[Echo]:
        return self._run(handlers, access=access, parts=parts or {}, settings=settings)

    @asynccontextmanager
    async def _run(
        self,
        handlers: Mapping[str, Callable[..., Any]],
        *,
        access: Mapping[str, Access] | None,
        parts: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> AsyncIterator[Echo]:
        chosen = ServiceSettings(**{"listen": "127.0.0.1:0", "service_secret": SECRET, "drain_s": 2.0} | dict(settings))
        public = {f"/{SERVICE}/{name}": Access.PUBLIC for name in handlers}
        own = {f"/{SERVICE}/{name}": allowed for name, allowed in (access or {}).items()}
        binding = Binding(_adder(handlers), object(), SERVICE)
        whole = ServiceParts([binding], public | own, self.authenticator, **parts)
        async with serving(whole, chosen) as server, _channel(server.address) as channel:
            yield Echo(server, channel, chosen)


def _adder(handlers: Mapping[str, Callable[..., Any]]) -> Callable[[object, grpc.aio.Server], None]:
    def add(_servicer: object, server: grpc.aio.Server) -> None:
        made = {
            name: _HANDLERS[name.partition("_")[0]](
                handler, request_deserializer=StringValue.FromString, response_serializer=StringValue.SerializeToString
            )
            for name, handler in handlers.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, made)])

    return add


def _channel(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(
        address, options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    )


@pytest.fixture
def serve() -> Serve:
    return Serve()
