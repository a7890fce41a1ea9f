"""What the event tests arrange."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from downstack.local.kafka import LocalKafka

from services.kit.events.event import Event
from services.kit.events.outbox import Outbox
from services.kit.events.topics import Topic, ensure_topics
from tests.integration.events.arrange import MakeEvent, MakeTopic, OpenOutbox, ReadTopic, Running

READ_TIMEOUT_S = 60.0


@pytest.fixture
def make_topic(kafka: LocalKafka) -> MakeTopic:
    async def make(partitions: int = 2) -> Topic:
        topic = Topic(f"t.{uuid.uuid4().hex[:12]}", partitions=partitions, retention_ms=3_600_000)
        await ensure_topics(kafka.bootstrap, topics=[topic])
        return topic

    return make


@pytest.fixture
def make_event() -> MakeEvent:
    def make(n: int = 0, *, topic: str = "t", key: str = "k", payload: bytes = b"") -> Event:
        return Event(f"id-{n}", "tests", "tests.Made", topic, key, payload or f"payload {n}".encode(), 1.8e9 + n)

    return make


@pytest.fixture
def read_topic(kafka: LocalKafka) -> ReadTopic:
    """Reads `count` records from the beginning, or what there is now."""

    async def read(topic: str, count: int | None = None) -> list[Any]:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            if count is None:
                count = sum((await consumer.end_offsets(consumer.assignment())).values())
            records: list[Any] = []
            async with asyncio.timeout(READ_TIMEOUT_S):
                while len(records) < count:
                    for found in (await consumer.getmany(timeout_ms=500)).values():
                        records += found
            return records
        finally:
            await consumer.stop()

    return read


@pytest.fixture
def open_outbox(tmp_path: Path) -> OpenOutbox:
    @asynccontextmanager
    async def make(
        name: str = "outbox.db", *, max_events: int = 100_000, max_bytes: int = 1 << 28
    ) -> AsyncIterator[Outbox]:
        async with Outbox.open(tmp_path / name, max_events=max_events, max_bytes=max_bytes) as outbox:
            yield outbox

    return make


@pytest.fixture
def running() -> Running:
    """Keeps a service's task running for a block."""

    @asynccontextmanager
    async def run(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        task = asyncio.ensure_future(work())
        try:
            yield
            if task.done():
                await task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return run
