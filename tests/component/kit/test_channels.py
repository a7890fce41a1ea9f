"""Channels between services: one for each target, reconnecting, without a limit of size, closed when idle."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.kit import context
from services.kit.channel import ChannelPool, call_timeout, open_channel


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


async def unary(request: StringValue, _: Any) -> StringValue:
    return text(request.value * 1024)


def unary_of(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary("/test.v1.Echo/unary", StringValue.SerializeToString, StringValue.FromString)


async def test_answers_between_services_have_no_limit_of_size(serve: Any) -> None:
    """gRPC's own limit for a client is 4 MiB."""
    async with serve({"unary": unary}) as echo, open_channel(echo.server.address) as channel:
        answer = await unary_of(channel)(text("x" * 8192))
    assert len(answer.value) == 8 * 1024 * 1024


async def test_a_channel_finds_a_service_that_came_back(serve: Any) -> None:
    """After a restart on the same port the next call is served, within the deadline it has."""
    async with serve({"unary": unary}) as echo:
        address = echo.server.address
        channel = open_channel(address)
        assert (await unary_of(channel)(text("a"), timeout=5)).value == "a" * 1024
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary_of(channel)(text("a"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with serve({"unary": unary}, listen=address):
        answer = await unary_of(channel)(text("b"), timeout=10, wait_for_ready=True)
    assert answer.value == "b" * 1024
    await channel.close()


async def test_a_pool_has_one_channel_for_each_target(serve: Any) -> None:
    async with serve({"unary": unary}) as echo, ChannelPool() as pool:
        channel = pool.get(echo.server.address)
        assert pool.get(echo.server.address) is channel
        assert pool.get("127.0.0.1:1") is not channel
        assert len(pool) == 2
        assert (await unary_of(channel)(text("a"))).value == "a" * 1024
    with pytest.raises(grpc.aio.UsageError):
        await unary_of(channel)(text("a"))


async def test_a_full_pool_lets_the_oldest_go_when_its_calls_are_done(serve: Any) -> None:
    """A stream that runs on an evicted channel is not cut off; new calls need a new channel."""
    gate = asyncio.Event()

    async def stream(_r: Any, _c: Any) -> AsyncIterator[StringValue]:
        yield text("first")
        await gate.wait()
        yield text("last")

    async with serve({"stream": stream}) as echo, ChannelPool(limit=2) as pool:
        target = echo.server.address
        oldest = pool.get(target)
        call = oldest.unary_stream("/test.v1.Echo/stream", StringValue.SerializeToString, StringValue.FromString)(
            text()
        )
        assert (await call.read()).value == "first"
        pool.get("127.0.0.1:1")
        pool.get("127.0.0.1:2")
        assert len(pool) == 2
        gate.set()
        assert (await call.read()).value == "last"
        assert await call.read() is grpc.aio.EOF
        assert pool.get(target) is not oldest


async def test_an_idle_channel_is_let_go() -> None:
    """Workers come and go under new addresses; their channels do not stay for ever."""
    async with ChannelPool(idle_s=-1.0) as pool:
        pool.get("127.0.0.1:1")
        assert len(pool) == 0


async def test_a_pool_closes_while_calls_hang(serve: Any) -> None:
    """The end of a service does not wait for the grace of channels that it had let go before."""
    begun = asyncio.Event()

    async def hang(_r: Any, _c: Any) -> StringValue:
        begun.set()
        await asyncio.Event().wait()
        return text()

    async with serve({"unary": hang}, drain_s=0.1) as echo:
        async with asyncio.timeout(5), ChannelPool(limit=1) as pool:
            call = asyncio.ensure_future(unary_of(pool.get(echo.server.address))(text()))
            await begun.wait()
            pool.get("127.0.0.1:1")
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await asyncio.wait_for(call, 5)


def test_a_timeout_is_never_negative() -> None:
    """A deadline that is gone leaves nothing, and gRPC refuses the call before it is sent."""
    token = context.deadline.set(0.0)
    try:
        assert call_timeout(5.0) == 0.0
    finally:
        context.deadline.reset(token)
    assert call_timeout(5.0) == 5.0
