"""Channels to other services: keepalive, reconnection, a bounded retry, and deadlines passed on.

A call that nobody awaits to its end goes on at the other side: grpc.aio cancels nothing by itself. Whoever opens a
stream therefore cancels it in a `finally`:

    call = stub.Generate(request, timeout=call_timeout(60.0), metadata=…)
    try:
        async for frame in call:
            …
    finally:
        call.cancel()

The retry here covers calls that reached nobody. What a service of ours refuses is not repeated (it tells its callers
inside the system so), and a stream that has begun is never repeated by gRPC.
"""

import asyncio
import json
import time
from collections import OrderedDict
from types import TracebackType
from typing import Protocol, Self

import grpc.aio

from services.kit import context

# Strictly above the server's floor of 10 s between pings, or the server would end the connection (too_many_pings).
_KEEPALIVE_MS = 30_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_ATTEMPTS = 3


def _service_config(attempts: int) -> str:
    if attempts == 1:
        return "{}"
    policy = {
        "maxAttempts": attempts,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    # At most about one call in five is a repetition once calls fail in numbers.
    throttling = {"maxTokens": 100, "tokenRatio": 0.2}
    return json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}], "retryThrottling": throttling})


def open_channel(target: str, *, attempts: int = _ATTEMPTS) -> grpc.aio.Channel:
    """A channel to host:port. Its messages have no limit of size: the other side is one of ours.

    `attempts` counts the first one, too. A caller with rules of its own for repeating takes 1: gRPC would wait out the
    RetryInfo of a refusal before its caller hears of it.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.service_config", _service_config(attempts)),
        ],
    )


class _ServicerContext(Protocol):
    def time_remaining(self) -> float | None: ...


def remaining_s(servicer_context: _ServicerContext) -> float | None:
    """Seconds until the deadline of the call that is being served. None: it has none."""
    ours = context.deadline.get()
    theirs = servicer_context.time_remaining()
    known = [left for left in (theirs, None if ours is None else ours - time.monotonic()) if left is not None]
    return max(0.0, min(known)) if known else None


def call_timeout(default: float) -> float:
    """The timeout for an outgoing call: `default` seconds, or less if the call that is being served ends earlier."""
    deadline = context.deadline.get()
    return default if deadline is None else max(0.0, min(default, deadline - time.monotonic()))


class ChannelPool:
    """One channel for each target, opened at first use; at most `limit`, and none that was idle for `idle_s`.

    A channel that has to go lets its calls finish for `grace_s`.
    """

    def __init__(
        self, *, limit: int = 256, idle_s: float = 600.0, grace_s: float = 600.0, attempts: int = _ATTEMPTS
    ) -> None:
        self._limit = limit
        self._attempts = attempts
        self._idle_s = idle_s
        self._grace_s = grace_s
        # By last use, oldest first.
        self._channels: OrderedDict[str, tuple[grpc.aio.Channel, float]] = OrderedDict()
        self._closing: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        channels = [channel for channel, _ in self._channels.values()] + list(self._closing.values())
        self._channels.clear()
        closing = list(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        # Also those whose grace was just cut short: a close that is cancelled leaves the channel's calls hanging.
        await asyncio.gather(*(channel.close() for channel in channels), return_exceptions=True)

    def __len__(self) -> int:
        return len(self._channels)

    def get(self, target: str) -> grpc.aio.Channel:
        """The channel to host:port. To be asked for again for each call, not kept."""
        now = time.monotonic()
        known = self._channels.pop(target, None)
        channel = known[0] if known else open_channel(target, attempts=self._attempts)
        self._channels[target] = (channel, now)
        self._evict(now)
        return channel

    def _evict(self, now: float) -> None:
        while self._channels:
            oldest, (channel, used) = next(iter(self._channels.items()))
            if len(self._channels) <= self._limit and now - used <= self._idle_s:
                return
            del self._channels[oldest]
            task = asyncio.get_running_loop().create_task(channel.close(self._grace_s))
            self._closing[task] = channel
            task.add_done_callback(lambda done: self._closing.pop(done, None))
