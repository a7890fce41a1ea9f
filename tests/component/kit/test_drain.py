"""A drain: what runs may finish, what comes is refused, what is left is ended with a reason."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.kit.errors import Reason
from services.kit.status import error_from_rpc


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


class Slow:
    """Handlers that begin at once and end when they are let go; `ended` lists how each ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.ended: list[str] = []

    async def unary(self, _r: Any, _c: Any) -> StringValue:
        self.begun.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("finished")
        return text("done")

    async def stream(self, request: Any, servicer: Any) -> AsyncIterator[StringValue]:
        yield text("first")
        yield await self.unary(request, servicer)

    async def chat(self, _requests: Any, servicer: Any) -> AsyncIterator[StringValue]:
        yield text("hello")
        yield await self.unary(None, servicer)


async def reason_of(call: Any) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value).reason


async def test_running_calls_finish_and_new_ones_are_refused(serve: Any) -> None:
    """Also beside a call that was aborted, with which grpc's own stop is not graceful."""
    slow = Slow()
    told = asyncio.Event()

    async def on_drain() -> None:
        told.set()

    handlers = {"unary": slow.unary, "stream": slow.stream}
    async with serve(handlers, parts={"on_drain": on_drain}, drain_s=30.0) as echo:
        single, streamed = echo.method("unary")(text()), echo.method("stream")(text())
        assert (await streamed.read()).value == "first"
        for _ in range(2):
            await asyncio.wait_for(slow.begun.acquire(), 5)
        draining = asyncio.create_task(echo.server.drain())
        await asyncio.wait_for(told.wait(), 5)
        assert await reason_of(echo.method("unary")(text())) is Reason.DRAINING
        slow.gate.set()
        assert (await single).value == "done"
        assert (await streamed.read()).value == "done"
        assert await streamed.read() is grpc.aio.EOF
        await draining
    assert slow.ended == ["finished", "finished"]


async def test_what_does_not_finish_in_time_is_ended_with_a_reason(serve: Any) -> None:
    """The handler is cancelled, its finally runs, and the caller learns DRAINING with a RetryInfo."""
    slow = Slow()
    async with serve({"unary": slow.unary, "stream": slow.stream}, drain_s=0.1) as echo:
        single, streamed = echo.method("unary")(text()), echo.method("stream")(text())
        await streamed.read()
        for _ in range(2):
            await asyncio.wait_for(slow.begun.acquire(), 5)
        await echo.server.drain()
        for call in (single, streamed.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = error_from_rpc(caught.value)
            assert (error.reason, error.retry_after_s) == (Reason.DRAINING, 1.0)
    assert slow.ended == ["cancelled", "cancelled"]


async def test_a_drain_does_not_wait_for_endless_calls(serve: Any) -> None:
    """A worker's connection would hold the scheduler for its whole budget."""
    slow = Slow()
    loop = asyncio.get_running_loop()
    parts = {"endless": ["/test.v1.Echo/stream"]}
    async with serve({"chat": slow.chat, "stream": slow.stream}, parts=parts, drain_s=30.0) as echo:
        calls = [echo.method("chat")(), echo.method("stream")(text())]
        for call in calls:
            await call.read()
            await asyncio.wait_for(slow.begun.acquire(), 5)
        started = loop.time()
        await echo.server.drain()
        assert loop.time() - started < 3
        for call in calls:
            assert await reason_of(call.read()) is Reason.DRAINING


async def test_a_hurry_cuts_the_drain_short(serve: Any) -> None:
    """A second signal does not wait for the budget."""
    slow, hurry = Slow(), asyncio.Event()
    loop = asyncio.get_running_loop()
    async with serve({"unary": slow.unary}, drain_s=60.0, drain_delay_s=60.0) as echo:
        call = asyncio.ensure_future(echo.method("unary")(text()))
        await asyncio.wait_for(slow.begun.acquire(), 5)
        hurry.set()
        started = loop.time()
        await echo.server.drain(hurry=hurry)
        assert loop.time() - started < 3
        assert await reason_of(call) is Reason.DRAINING


async def test_a_drain_step_that_fails_does_not_stop_the_drain(serve: Any) -> None:
    async def on_drain() -> None:
        raise RuntimeError("broken")

    slow = Slow()
    async with serve({"unary": slow.unary}, parts={"on_drain": on_drain}, drain_s=0.1) as echo:
        call = asyncio.ensure_future(echo.method("unary")(text()))
        await asyncio.wait_for(slow.begun.acquire(), 5)
        await echo.server.drain()
        assert await reason_of(call) is Reason.DRAINING
        assert not echo.server.health.serving
