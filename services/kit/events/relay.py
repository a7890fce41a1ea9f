"""From the outbox to Kafka: in order, acknowledged by all replicas, and forgotten here only then."""

import asyncio
import contextlib
import random
from collections.abc import Sequence

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.kit.errors import DownstackError
from services.kit.events.event import headers_of
from services.kit.events.journal import Entry
from services.kit.events.metrics import RELAY_REBUILDS, RELAY_SHIPPED
from services.kit.events.outbox import Outbox
from services.kit.events.producer import open_producer, send
from services.kit.events.topics import TOPICS, Topic, ensure_topics

_log = structlog.get_logger(__name__)
_MAX_BATCH = 500
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0


class Relay:
    """Ships one outbox. `run` is for the life of the process; `flush` is for its end."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        bootstrap: str,
        topics: Sequence[Topic] = TOPICS,
        delivery_timeout_s: float = 30.0,
    ) -> None:
        self._outbox = outbox
        self._bootstrap = bootstrap
        self._topics = topics
        self._delivery_timeout_s = delivery_timeout_s

    async def run(self) -> None:
        """Ship until cancelled. While Kafka is away it tries again with growing pauses, up to 10 s."""
        pause_s = _FIRST_PAUSE_S
        while True:
            before = self._outbox.depth
            try:
                await ensure_topics(self._bootstrap, topics=self._topics, timeout_s=self._delivery_timeout_s)
                async with open_producer(self._bootstrap, timeout_s=self._delivery_timeout_s) as producer:
                    while True:
                        await self._outbox.until_filled()
                        await self._ship(producer, await self._outbox.read(_MAX_BATCH))
                        pause_s = _FIRST_PAUSE_S
            except (KafkaError, DownstackError, OSError, TimeoutError) as error:
                fault = type(error).__name__
                RELAY_REBUILDS.labels(fault).inc()
                _log.warning("relay_interrupted", fault=fault, waiting=before, pause_s=round(pause_s, 2))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def flush(self, *, timeout_s: float) -> int:
        """Wait until everything is shipped, at most `timeout_s`. Returns how many events are left; they are durable."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._outbox.until_emptied()
        return self._outbox.depth

    async def _ship(self, producer: AIOKafkaProducer, entries: Sequence[Entry]) -> None:
        sent: list[tuple[Entry, asyncio.Future[object]]] = []
        try:
            # An idempotent producer repeats for ever, so the time-out is ours; then the producer is given up.
            async with asyncio.timeout(self._delivery_timeout_s):
                for entry in entries:
                    event, key = entry.event, entry.event.key.encode()
                    future = await send(producer, event.topic, event.payload, key=key, headers=headers_of(event))
                    sent.append((entry, future))
                if sent:
                    await asyncio.wait([future for _, future in sent])
        finally:
            acknowledged = [entry for entry, future in sent if _succeeded(future)]
            if acknowledged:
                await self._outbox.delete(acknowledged)
        for entry in acknowledged:
            RELAY_SHIPPED.labels(entry.event.topic).inc()
        for _, future in sent:
            future.result()


def _succeeded(future: asyncio.Future[object]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
