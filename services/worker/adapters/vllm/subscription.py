"""The subscription to vLLM's KV events: ZeroMQ over a local socket, gaps filled by replay where that is possible."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import structlog
import zmq.asyncio
from prometheus_client import Counter
from vllm.distributed.kv_events import KVEventBatch
from zmq.constants import SocketType

_log = structlog.get_logger()
GAPS = Counter("downstack_worker_kv_event_gaps", "Gaps in the engine's KV events.", ("outcome",))
# The publisher answers a replay within a tenth of a second when it is idle.
_REPLAY_S = 2.0
_HIGH_WATER = 100_000


class Subscription:
    """Reads batches of events in order. A batch of None stands for events that are lost for good."""

    def __init__(self, *, endpoint: str, replay_endpoint: str) -> None:
        self._context = zmq.asyncio.Context()
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._replay_endpoint = replay_endpoint
        self._socket = self._context.socket(SocketType.SUB)
        self._socket.set_hwm(_HIGH_WATER)
        self._socket.subscribe(b"")
        self._socket.connect(endpoint)
        self._next = 0

    def close(self) -> None:
        """Ends it."""
        self._context.destroy(linger=0)

    async def batches(self) -> AsyncGenerator[list[Any] | None, None]:
        """The events of each engine step that had any."""
        while True:
            frames = await self._socket.recv_multipart()
            sequence = int.from_bytes(frames[-2], "big", signed=True)
            if sequence < self._next:
                # The publisher began anew: the numbers, and what they spoke of.
                self._next = 0
                yield None
            if sequence > self._next:
                async for events in self._missed(until=sequence):
                    yield events
            self._next = sequence + 1
            yield self._decoder.decode(frames[-1]).events

    async def _missed(self, *, until: int) -> AsyncGenerator[list[Any] | None, None]:
        """The batches before `until`, or None if the publisher has them no more: it truncates without a word."""
        replayed = await self._replay(until=until)
        whole = list(replayed) == list(range(self._next, until))
        GAPS.labels("replayed" if whole else "lost").inc()
        _log.warning("kv_event_gap", first=self._next, until=until, replayed=whole)
        if not whole:
            yield None
        for payload in replayed.values():
            yield self._decoder.decode(payload).events

    async def _replay(self, *, until: int) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        socket = self._context.socket(SocketType.DEALER)
        try:
            socket.connect(self._replay_endpoint)
            async with asyncio.timeout(_REPLAY_S):
                await socket.send_multipart([b"", self._next.to_bytes(8, "big")])
                while True:
                    *_, sequence_frame, payload = await socket.recv_multipart()
                    sequence = int.from_bytes(sequence_frame, "big", signed=True)
                    if sequence < 0 or not payload:
                        break
                    if self._next <= sequence < until:
                        found[sequence] = payload
        except TimeoutError:
            pass
        finally:
            socket.close(linger=0)
        return found
