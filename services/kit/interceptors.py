"""What happens around every call: errors and telemetry, then admission, then identity, then the deadline.

One gRPC interceptor wraps the handler once and runs the steps around it, for unary and streaming handlers alike, and
for streaming handlers of both styles: asynchronous generators, and coroutines that call `context.write`. A generator
is driven from the call's own task, so that a cancelled call closes it at once and in the right context.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from services.kit import context, metrics, telemetry
from services.kit.errors import DownstackError, Reason
from services.kit.identity import ASSERTION_KEY, REQUEST_ID_KEY, Access, Authenticator, set_current_identity
from services.kit.ids import new_id
from services.kit.status import error_from_rpc, to_rpc_status

_log = structlog.get_logger()
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class ServerCall:
    """One call that is being served.

    Attributes:
        method: "/pkg.Service/Method".
        metadata: The caller's metadata without its binary part; of a repeated key, the first value.
        servicer: gRPC's own context of the call.
        bidi: Whether both sides stream.
    """

    method: str
    metadata: Mapping[str, str]
    servicer: Any
    bidi: bool
    _sent: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """The method as OpenTelemetry names it: "pkg.Service/Method"."""
        return self.method.removeprefix("/")

    @property
    def from_service(self) -> bool:
        """Whether the caller says that it is a service of the system. For courtesies only: nobody has checked it."""
        return ASSERTION_KEY in self.metadata

    async def send_request_id(self) -> None:
        """Sends the request id ahead of a stream's first message. Not earlier: a refusal must stay open to a retry."""
        if self._sent:
            return
        self._sent = True
        with suppress(grpc.aio.UsageError):  # the handler has sent its own
            await self.servicer.send_initial_metadata(((REQUEST_ID_KEY, context.current_request_id()),))


Proceed = Callable[[], Awaitable[Any]]


class Step(Protocol):
    """One concern around every call."""

    async def __call__(self, call: ServerCall, proceed: Proceed) -> Any:
        """Serves the call with `proceed()`, or raises DownstackError to refuse it."""
        ...


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # the base class has no types
    """Runs the steps around every call, the first one outermost.

    A single request of more than `max_request_bytes` is refused with a reason; gRPC's own limit lies higher and gives
    none.
    """

    def __init__(self, steps: Sequence[Step], *, max_request_bytes: int) -> None:
        self._steps = tuple(reversed(steps))
        self._max_request_bytes = max_request_bytes

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The handler of the call with the steps around it; None for a method that nobody serves."""
        handler = await continuation(details)
        return None if handler is None else _wrapped(handler, details, self._steps, self._max_request_bytes)


def _wrapped(handler: Any, details: Any, inner_first: Sequence[Step], max_request_bytes: int) -> Any:
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    respond = _stream if handler.response_streaming else _unary
    bidi = bool(handler.request_streaming and handler.response_streaming)
    # A single request is read inside of the steps: after it is known who sends it, and what is no message is refused
    # like any other mistake. gRPC would call it UNKNOWN. Those of a stream are read when the handler asks for them.
    parse = partial(_parsed, handler.request_deserializer, max_request_bytes)
    outer, inner = (parse, None) if handler.request_streaming else (None, parse)
    read = partial(_read, inner, partial(respond, behaviour))

    async def serve(request: Any, servicer: Any) -> Any:
        call = ServerCall(details.method, _metadata(details.invocation_metadata), servicer, bidi)
        proceed: Proceed = partial(read, request, call)
        for step in inner_first:
            proceed = partial(step, call, proceed)
        return await proceed()

    return _HANDLERS[bool(handler.request_streaming), bool(handler.response_streaming)](
        serve,
        request_deserializer=outer,
        response_serializer=handler.response_serializer,
    )


_HANDLERS: Mapping[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


async def _read(
    parse: Callable[[bytes], Any] | None, respond: Callable[..., Any], request: Any, call: ServerCall
) -> Any:
    """Reads a single request and has it answered."""
    return await respond(request if parse is None else parse(request), call)


def _parsed(parse: Callable[[bytes], Any] | None, max_bytes: int, request: bytes) -> Any:
    """The message in the bytes of a request."""
    if len(request) > max_bytes:
        raise DownstackError(
            Reason.MESSAGE_TOO_LARGE,
            f"The request has {len(request)} bytes, and {max_bytes} are the most; send less at once.",
            metadata={"bytes": str(len(request)), "max_bytes": str(max_bytes)},
        )
    if parse is None:
        return request
    try:
        return parse(request)
    except DecodeError:
        raise DownstackError(Reason.BAD_ENCODING, "The request is no message of this method.") from None


async def _unary(behaviour: Callable[..., Any], request: Any, call: ServerCall) -> Any:
    response = await behaviour(request, call.servicer)
    # With the status, in the one write of a single answer: a write of its own for the headers costs as much again.
    own = call.servicer.trailing_metadata() or ()
    call.servicer.set_trailing_metadata((*own, (REQUEST_ID_KEY, context.current_request_id())))
    return response


async def _stream(behaviour: Callable[..., Any], request: Any, call: ServerCall) -> None:
    frames = behaviour(request, call.servicer)
    if not hasattr(frames, "__aiter__"):
        await frames  # a coroutine that writes by itself
        return
    try:
        async for frame in frames:
            await call.send_request_id()
            await call.servicer.write(frame)
    finally:
        if hasattr(frames, "aclose"):
            await frames.aclose()


def _metadata(pairs: Sequence[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for key, value in pairs or ():
        if isinstance(value, str):
            found.setdefault(key, value)
    return found


class Telemetry:
    """Makes the request id, opens the span, counts and times the call, and turns what was raised into a status."""

    async def __call__(self, call: ServerCall, proceed: Proceed) -> Any:
        context.request_id.set(new_id("req"))
        started = time.perf_counter()
        in_flight = metrics.IN_FLIGHT.labels(call.name)
        in_flight.inc()
        code, reason = "OK", ""
        with telemetry.server_span(call.name, call.metadata) as span:
            try:
                return await proceed()
            except grpc.aio.AbortError:
                code = _code(call)
                raise
            except asyncio.CancelledError:
                code = "DEADLINE_EXCEEDED" if call.servicer.time_remaining() == 0 else "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001  the boundary of every call
                refusal = _refusal(call, error)
                code, reason = refusal.code.value, refusal.reason.value
                trailers = ((REQUEST_ID_KEY, context.current_request_id()),)
                status = to_rpc_status(refusal, trailers=trailers, caller_decides=call.from_service)
                await call.servicer.abort_with_status(status)
            finally:
                in_flight.dec()
                telemetry.end_span(span, code=code, reason=reason)
                metrics.CALL_DURATION.labels(call.name, code).observe(time.perf_counter() - started)
                if reason:
                    metrics.REFUSALS.labels(call.name, reason).inc()


def _code(call: ServerCall) -> str:
    code = call.servicer.code()  # a number or a StatusCode, as the handler gave it
    return _CODE_NAMES.get(code, "UNKNOWN")


_CODE_NAMES: Mapping[Any, str] = {key: code.name for code in grpc.StatusCode for key in (code, code.value[0])}


def _refusal(call: ServerCall, error: Exception) -> DownstackError:
    """What the caller is told. An exception that nobody expected is logged under an id; its text stays here."""
    if isinstance(error, DownstackError):
        return error
    if isinstance(error, grpc.RpcError):
        return error_from_rpc(error)
    error_id = new_id("err")
    kind = type(error).__qualname__
    metrics.UNEXPECTED.labels(call.name, kind).inc()
    _log.error("unexpected exception", method=call.name, error_id=error_id, exc_info=error)
    message = f"The service has a defect; its log has it as {error_id}."
    return DownstackError(Reason.INTERNAL, message, metadata={"error_id": error_id})


class Admission:
    """Counts the calls that run, refuses what is above the limit or comes during a drain, and lets a drain wait.

    `endless` calls run as long as their caller likes; a drain does not wait for them. `exempt` ones are not counted.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._draining = False
        self._running: dict[asyncio.Task[Any], ServerCall] = {}
        self._cut: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self.endless: frozenset[str] = frozenset()
        self.exempt: frozenset[str] = frozenset()

    @property
    def in_flight(self) -> int:
        """The number of calls that a drain waits for."""
        return sum(not self.is_endless(call) for call in self._running.values())

    def is_endless(self, call: ServerCall) -> bool:
        """Whether the call may run for ever: both sides stream, or it was declared so."""
        return call.bidi or call.method in self.endless

    async def __call__(self, call: ServerCall, proceed: Proceed) -> Any:
        task = asyncio.current_task()
        if call.method in self.exempt or task is None:
            return await proceed()
        if self._draining:
            raise _draining()
        if len(self._running) >= self._limit:
            raise DownstackError(Reason.OVERLOADED, "Too many calls run here.", retry_after_s=_RETRY_AFTER_S)
        self._running[task] = call
        try:
            return await proceed()
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            raise _draining() from None
        finally:
            del self._running[task]
            self._cut.discard(task)
            self._note_idle()

    async def drain(self, *, budget_s: float) -> int:
        """Refuses new calls and waits until none runs, at most `budget_s`. Returns how many still run."""
        self._draining = True
        self._note_idle()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), budget_s)
        return self.in_flight

    async def cut(self, *, budget_s: float) -> None:
        """Ends what still runs with DRAINING, and waits for the handlers to put their accounts in order."""
        tasks = [task for task in self._running if not task.done()]
        self._cut.update(tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=budget_s)

    def _note_idle(self) -> None:
        if self._draining and self.in_flight == 0:
            self._idle.set()


def _draining() -> DownstackError:
    return DownstackError(Reason.DRAINING, "This instance is stopping.", retry_after_s=_RETRY_AFTER_S)


class Identification:
    """Finds out who calls and whether they may; what is not listed in `access` is denied."""

    def __init__(self) -> None:
        self.access: Mapping[str, Access] = {}
        self.authenticator: Authenticator | None = None

    async def __call__(self, call: ServerCall, proceed: Proceed) -> Any:
        access = self.access.get(call.method)
        if access is None or self.authenticator is None:
            raise DownstackError(Reason.ACTION_NOT_ALLOWED, "Nobody may call this method.")
        if not access.public:
            identity = await self.authenticator.authenticate(call.metadata)
            access.check(identity)
            set_current_identity(identity)
            if identity.service:
                _adopt_request_id(call)
        return await proceed()


def _adopt_request_id(call: ServerCall) -> None:
    """Goes on under the request id of the calling service. An outside caller's is never taken."""
    given = call.metadata.get(REQUEST_ID_KEY, "")
    if _REQUEST_ID.fullmatch(given):
        context.request_id.set(given)


class Deadline:
    """Refuses a call whose deadline is gone, and gives a call without one the default; endless calls get none."""

    def __init__(self, *, default_s: float, is_endless: Callable[[ServerCall], bool]) -> None:
        self._default_s = default_s
        self._is_endless = is_endless

    async def __call__(self, call: ServerCall, proceed: Proceed) -> Any:
        left = call.servicer.time_remaining()
        if left is not None:
            if left <= 0:
                raise DownstackError(Reason.DEADLINE_IN_QUEUE, "The deadline had passed before the call was served.")
            context.deadline.set(time.monotonic() + left)
            return await proceed()
        if self._is_endless(call):
            return await proceed()
        context.deadline.set(time.monotonic() + self._default_s)
        limit = asyncio.timeout(self._default_s)
        try:
            async with limit:
                return await proceed()
        except TimeoutError:
            if not limit.expired():
                raise
            message = f"The call took more than the {self._default_s:g} s that a call without a deadline has."
            raise DownstackError(Reason.DEADLINE_IN_GENERATION, message) from None
