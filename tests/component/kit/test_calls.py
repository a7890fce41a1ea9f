"""Every kind of handler through the whole chain: answers, refusals, defects, identity, limits, ids, metrics, traces."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from prometheus_client import REGISTRY

from services.kit import context, telemetry
from services.kit.channel import call_timeout, open_channel, remaining_s
from services.kit.errors import DownstackError, Reason
from services.kit.identity import Access, Identity, current_identity, internal_metadata, sign_assertion
from services.kit.status import error_from_rpc

SECRET = b"correct-horse-battery"
ALICE = Identity("tenant-1", "alice", ("eng",), frozenset({"generate"}), "key-1")


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


async def stream_of(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield text(value)


async def unary(request: StringValue, _: Any) -> StringValue:
    return text(f"{request.value}!")


async def stream(request: StringValue, _: Any) -> AsyncIterator[StringValue]:
    for number in range(3):
        yield text(f"{request.value}{number}")


async def stream_written(request: StringValue, servicer: Any) -> None:
    for number in range(3):
        await servicer.write(text(f"{request.value}{number}"))


async def collect(requests: AsyncIterator[StringValue], _: Any) -> StringValue:
    return text(",".join([request.value async for request in requests]))


async def chat(requests: AsyncIterator[StringValue], _: Any) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield text(request.value.upper())


async def chat_written(_: Any, servicer: Any) -> None:
    while (request := await servicer.read()) is not grpc.aio.EOF:
        await servicer.write(text(request.value.upper()))


KINDS = {
    "unary": unary,
    "stream": stream,
    "stream_written": stream_written,
    "collect": collect,
    "chat": chat,
    "chat_written": chat_written,
}


async def result_of(echo: Any, name: str, **options: Any) -> list[str]:
    """What a call of any kind answers, as a list."""
    kind = name.partition("_")[0]
    request = text("a") if kind in ("unary", "stream") else stream_of("a", "b")
    call = echo.method(name)(request, **options)
    if kind in ("unary", "collect"):
        return [(await call).value]
    return [frame.value async for frame in call]


async def refusal_of(echo: Any, name: str, **options: Any) -> DownstackError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await result_of(echo, name, **options)
    return error_from_rpc(caught.value)


async def test_handlers_of_every_kind_answer(serve: Any) -> None:
    """Generators, coroutines that write by themselves, and single answers, with one and with many requests."""
    async with serve(KINDS) as echo:
        answers = {name: await result_of(echo, name) for name in KINDS}
    assert answers == {
        "unary": ["a!"],
        "stream": ["a0", "a1", "a2"],
        "stream_written": ["a0", "a1", "a2"],
        "collect": ["a,b"],
        "chat": ["A", "B"],
        "chat_written": ["A", "B"],
    }


def raising(error: BaseException) -> dict[str, Any]:
    async def unary(_r: Any, _c: Any) -> StringValue:
        raise error

    async def stream(_r: Any, _c: Any) -> AsyncIterator[StringValue]:
        yield text("first")
        raise error

    async def stream_written(_r: Any, servicer: Any) -> None:
        await servicer.write(text("first"))
        raise error

    async def chat(requests: AsyncIterator[StringValue], _c: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request
            raise error

    return {"unary": unary, "stream": stream, "stream_written": stream_written, "collect": unary, "chat": chat}


async def test_a_refusal_reaches_the_caller_with_its_reason(serve: Any) -> None:
    """Also after the first frame: a stream that fails ends with a status."""
    handlers = raising(DownstackError(Reason.MODEL_NOT_FOUND, "There is no model x.", metadata={"model": "x"}))
    async with serve(handlers) as echo:
        for name in handlers:
            error = await refusal_of(echo, name)
            assert (error.reason, error.message) == (Reason.MODEL_NOT_FOUND, "There is no model x.")
            assert error.metadata == {"model": "x"}


async def test_a_defect_is_internal_and_says_nothing(serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller gets an id, the log the place; neither has the exception's text."""
    handlers = raising(ValueError("canary: the text of a prompt"))
    async with serve(handlers) as echo:
        for name in handlers:
            error = await refusal_of(echo, name)
            assert error.reason is Reason.INTERNAL
            assert error.metadata["error_id"] in error.message
            assert "canary" not in error.message
    metric = {"rpc_method": "test.v1.Echo/unary", "exception": "ValueError"}
    assert REGISTRY.get_sample_value("downstack_rpc_unexpected_total", metric) == 1


async def test_a_failed_dependency_is_no_defect(serve: Any) -> None:
    """A gRPC error that a handler let through keeps its meaning."""
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="connection reset"
    )
    async with serve(raising(lost)) as echo:
        assert (await refusal_of(echo, "unary")).reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_handler_may_abort_by_itself(serve: Any) -> None:
    async def unary(_r: Any, servicer: Any) -> StringValue:
        await servicer.abort(grpc.StatusCode.DATA_LOSS, "as it likes")
        return text()

    async with serve({"unary_abort": unary}) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await result_of(echo, "unary_abort")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.DATA_LOSS, "as it likes")
    labels = {"rpc_method": "test.v1.Echo/unary_abort", "rpc_response_status_code": "DATA_LOSS"}
    assert REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) == 1


async def test_who_calls_is_asked_before_the_handler(serve: Any) -> None:
    """No credential, a forged one, one without the scope, one with it, and a method that nobody may call."""

    async def whoami(_r: Any, _c: Any) -> StringValue:
        identity = current_identity()
        return text(f"{identity.tenant_id} {identity.principal} {context.tenant.get()}")

    def with_scopes(*scopes: str) -> tuple[tuple[str, str], ...]:
        identity = Identity("tenant-1", "alice", (), frozenset(scopes), "key-1")
        return (("x-downstack-assertion", sign_assertion(identity, secret=SECRET, now=time.time())),)

    access = {"unary": Access.scope("generate"), "unary_closed": Access()}
    async with serve({"unary": whoami, "unary_closed": whoami}, access=access) as echo:
        assert (await refusal_of(echo, "unary")).reason is Reason.AUTH_MISSING
        forged = (("x-downstack-assertion", "e30.AAAA"),)
        assert (await refusal_of(echo, "unary", metadata=forged)).reason is Reason.AUTH_INVALID
        assert (await refusal_of(echo, "unary", metadata=with_scopes())).reason is Reason.ACTION_NOT_ALLOWED
        assert await result_of(echo, "unary", metadata=with_scopes("generate")) == ["tenant-1 alice tenant-1"]
        closed = await refusal_of(echo, "unary_closed", metadata=with_scopes("generate", "admin"))
        assert closed.reason is Reason.PEER_IDENTITY_DENIED


async def test_a_method_that_is_not_listed_is_denied(serve: Any) -> None:
    """A new method is closed until somebody decides who may call it."""
    async with serve({"unary": unary}) as echo:
        echo.server._identification.access = {}
        assert (await refusal_of(echo, "unary")).reason is Reason.ACTION_NOT_ALLOWED


async def test_an_unknown_method_is_unimplemented(serve: Any) -> None:
    async with serve({"unary": unary}) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.method("unary_nowhere")(text())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_request_id_is_ours_and_is_echoed(serve: Any) -> None:
    """A caller's own x-request-id is not taken; a service of the system passes its on."""

    async def tell(_r: Any, _c: Any) -> StringValue:
        return text(context.current_request_id())

    access = {"unary": Access.any_of(Access.PUBLIC), "unary_inside": Access.service("router")}
    async with serve({"unary": tell, "unary_inside": tell, "stream": stream}, access=access) as echo:
        call = echo.method("unary")(text(), metadata=(("x-request-id", "mine"),))
        answer = (await call).value
        assert answer.startswith("req_")
        assert (await call.trailing_metadata())["x-request-id"] == answer

        context.request_id.set("req_outer")
        inside = internal_metadata("router", identity=ALICE, secret=SECRET, now=time.time())
        assert await result_of(echo, "unary_inside", metadata=inside) == ["req_outer"]

        streamed = echo.method("stream")(text("a"))
        assert (await streamed.initial_metadata())["x-request-id"].startswith("req_")
        assert len([frame async for frame in streamed]) == 3


async def test_a_refusal_carries_the_request_id_in_its_trailers(serve: Any) -> None:
    """And nothing ahead of them, so that a client's retry policy may still repeat the call."""
    async with serve(raising(DownstackError(Reason.OVERLOADED, "x", retry_after_s=0.5))) as echo:
        call = echo.method("unary")(text())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    trailers = caught.value.trailing_metadata()
    assert trailers["x-request-id"].startswith("req_")
    assert trailers["grpc-retry-pushback-ms"] == "500"
    assert "x-request-id" not in (await call.initial_metadata())


async def test_a_service_is_told_to_decide_for_itself(serve: Any) -> None:
    """A refused service learns it at once, where the channel of an outside caller waits and tries again."""
    refused = 0

    async def refuse_once(_r: Any, _c: Any) -> StringValue:
        nonlocal refused
        if refused:
            return text("done")
        refused += 1
        raise DownstackError(Reason.OVERLOADED, "x", retry_after_s=0.01)

    inside = internal_metadata("router", identity=ALICE, secret=SECRET, now=time.time())
    async with serve({"unary": refuse_once}) as echo, open_channel(echo.server.address) as channel:
        retrying = replace(echo, channel=channel)
        assert (await refusal_of(retrying, "unary", metadata=inside)).retry_after_s == 0.01
        refused = 0
        assert await result_of(retrying, "unary") == ["done"]
        assert refused == 1


async def test_a_handlers_own_trailers_are_kept(serve: Any) -> None:
    async def unary(_r: Any, servicer: Any) -> StringValue:
        servicer.set_trailing_metadata((("x-own", "kept"),))
        return text()

    async with serve({"unary": unary}) as echo:
        call = echo.method("unary")(text())
        await call
        assert (await call.trailing_metadata())["x-own"] == "kept"
        assert "x-request-id" in (await call.trailing_metadata())


async def test_a_message_above_the_limit_is_refused(serve: Any) -> None:
    """4 MiB by default, with a reason; far above it, and for streamed messages, gRPC itself refuses."""

    async def length(request: StringValue, _c: Any) -> StringValue:
        return text(str(len(request.value)))

    async with serve({"unary": length, "collect": collect}) as echo:
        limit = echo.settings.max_message_bytes
        assert limit == 4 * 1024 * 1024
        fits = "x" * (limit - 16)
        assert (await echo.method("unary")(text(fits))).value == str(len(fits))
        for name, size in (("unary", limit + 1), ("unary", 4 * limit + 1), ("collect", 4 * limit + 1)):
            large = text("x" * size)
            request = large if name == "unary" else _one(large)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo.method(name)(request)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            error = error_from_rpc(caught.value)
            assert error.reason is Reason.MESSAGE_TOO_LARGE
            assert error.metadata.get("max_bytes", "") == (str(limit) if size < 4 * limit else "")


async def _one(message: StringValue) -> AsyncIterator[StringValue]:
    yield message


async def test_calls_above_the_limit_are_refused_and_room_comes_back(serve: Any) -> None:
    """At most max_in_flight run at once; the others are told to come back, and nothing leaks."""
    gate, running = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(_r: Any, _c: Any) -> StringValue:
        running.release()
        await gate.wait()
        return text("done")

    async with serve({"unary": wait}, max_in_flight=2) as echo:
        calls = [echo.method("unary")(text()) for _ in range(2)]
        for _ in calls:
            await running.acquire()
        error = await refusal_of(echo, "unary")
        assert (error.reason, error.retry_after_s) == (Reason.OVERLOADED, 1.0)
        gate.set()
        assert [(await call).value for call in calls] == ["done", "done"]
        assert await result_of(echo, "unary") == ["done"]


async def test_cancelling_reaches_the_handler_and_closes_its_generator(serve: Any) -> None:
    """The finally of a generator runs at once, in the task and context of its own call."""
    closed: asyncio.Queue[str] = asyncio.Queue()

    async def endless(_r: Any, _c: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("tick")
        finally:
            closed.put_nowait(context.current_request_id())

    async with serve({"stream": endless}) as echo:
        call = echo.method("stream")(text())
        assert (await call.read()).value == "tick"
        request_id = (await call.initial_metadata())["x-request-id"]
        call.cancel()
        assert await asyncio.wait_for(closed.get(), 5) == request_id
        assert echo.server._admission.in_flight == 0
    labels = {"rpc_method": "test.v1.Echo/stream", "rpc_response_status_code": "CANCELLED"}
    assert REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) == 1


async def test_a_deadline_is_passed_on(serve: Any) -> None:
    """Outgoing calls get what is left of the caller's deadline, and never more than their own limit."""

    async def left(_r: Any, servicer: Any) -> StringValue:
        return text(json.dumps([call_timeout(60.0), call_timeout(1.0), remaining_s(servicer)]))

    async with serve({"unary": left}) as echo:
        ours, own_limit, remaining = json.loads((await result_of(echo, "unary", timeout=5.0))[0])
        assert 4 < ours < 5.1
        assert own_limit == 1.0
        assert 4 < remaining < 5.1


async def test_a_call_without_a_deadline_gets_the_default(serve: Any) -> None:
    """It ends with a reason; the handler is cancelled. A stream of both sides, or a declared one, may go on."""
    cancelled = asyncio.Event()

    async def wait(_r: Any, _c: Any) -> StringValue:
        assert call_timeout(60.0) <= 0.2
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return text()

    async def unbound(_r: Any, servicer: Any) -> AsyncIterator[StringValue]:
        yield text(str((call_timeout(60.0), remaining_s(servicer))))

    async def unbound_chat(requests: AsyncIterator[StringValue], servicer: Any) -> AsyncIterator[StringValue]:
        assert len([request async for request in requests]) == 2
        yield text(str((call_timeout(60.0), remaining_s(servicer))))

    handlers = {"unary": wait, "stream": unbound, "stream_endless": unbound, "chat": unbound_chat}
    parts = {"endless": ["/test.v1.Echo/stream_endless"]}
    async with serve(handlers, default_deadline_s=0.2, parts=parts) as echo:
        error = await refusal_of(echo, "unary")
        assert (error.reason, cancelled.is_set()) == (Reason.DEADLINE_IN_GENERATION, True)
        assert "0.2 s" in error.message
        assert await result_of(echo, "stream_endless") == ["(60.0, None)"]
        assert await result_of(echo, "chat") == ["(60.0, None)"]
        assert "60.0" not in (await result_of(echo, "stream"))[0]


async def test_a_handlers_own_time_out_is_not_taken_for_the_deadline(serve: Any) -> None:
    async with serve(raising(TimeoutError())) as echo:
        assert (await refusal_of(echo, "unary")).reason is Reason.INTERNAL


async def test_a_callers_deadline_ends_the_call(serve: Any) -> None:
    ended = asyncio.Event()

    async def wait(_r: Any, _c: Any) -> StringValue:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return text()

    async with serve({"unary_late": wait}) as echo:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo.method("unary_late")(text(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(ended.wait(), 5)
    labels = {"rpc_method": "test.v1.Echo/unary_late", "rpc_response_status_code": "DEADLINE_EXCEEDED"}
    assert REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) == 1


async def test_the_callers_trace_is_carried_on(serve: Any) -> None:
    """W3C trace context in, and out again to whatever the handler calls; also without an SDK."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def trace(_r: Any, _c: Any) -> StringValue:
        return text(json.dumps([telemetry.current_trace_id(), telemetry.trace_headers()]))

    async with serve({"unary": trace}) as echo:
        found = json.loads((await result_of(echo, "unary", metadata=(("traceparent", traceparent),)))[0])
        assert found[0] == "0af7651916cd43dd8448eb211c80319c"
        assert found[1]["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert json.loads((await result_of(echo, "unary"))[0]) == ["", {}]


async def test_calls_are_counted_and_timed(serve: Any) -> None:
    labels = {"rpc_method": "test.v1.Echo/unary_counted", "rpc_response_status_code": "OK"}
    async with serve({"unary_counted": unary}) as echo:
        for _ in range(3):
            await result_of(echo, "unary_counted")
    assert REGISTRY.get_sample_value("rpc_server_call_duration_seconds_count", labels) == 3
    assert REGISTRY.get_sample_value("downstack_rpc_in_flight", {"rpc_method": "test.v1.Echo/unary_counted"}) == 0


async def test_binary_and_repeated_metadata_is_harmless(serve: Any) -> None:
    """Of a repeated key the first value counts."""
    assertions = [
        ("x-downstack-assertion", sign_assertion(ALICE, secret=SECRET, now=time.time())),
        ("x-downstack-assertion", "forged"),
        ("blob-bin", b"\x00\xff"),
    ]
    async with serve({"unary": unary}, access={"unary": Access.scope("generate")}) as echo:
        assert await result_of(echo, "unary", metadata=tuple(assertions)) == ["a!"]
        last_first = tuple(reversed(assertions))
        assert (await refusal_of(echo, "unary", metadata=last_first)).reason is Reason.AUTH_INVALID
