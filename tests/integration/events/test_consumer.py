"""Consumer groups on a real broker."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from downstack.local.kafka import LocalKafka

from services.kit.errors import DownstackError, Reason
from services.kit.events.consumer import ConsumerLimits, EventConsumer
from services.kit.events.event import Event, MalformedEventError, ReceivedEvent, headers_of
from services.kit.events.topics import Topic
from tests.integration.events.arrange import MakeConsumer, MakeEvent, MakeTopic, Produce, ReadTopic, Running

WAIT_S = 60.0


class Handler:
    """Collects what it is given, after `fail` had its say; `until` waits for a number of distinct events."""

    def __init__(self, fail: Any = None) -> None:
        self.batches: list[list[str]] = []
        self.applied: dict[str, int] = {}
        self._fail = fail or (lambda _: None)
        self._changed = asyncio.Condition()

    async def __call__(self, events: Sequence[ReceivedEvent]) -> None:
        self.batches.append([event.event.id for event in events])
        self._fail(events)
        async with self._changed:
            for event in events:
                self.applied[event.event.id] = self.applied.get(event.event.id, 0) + 1
            self._changed.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.applied) >= count)


@pytest.fixture
def produce(kafka: LocalKafka) -> Produce:
    async def send(*events: Event, raw: Sequence[tuple[str, bytes | None]] = ()) -> None:
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all") as producer:
            for event in events:
                await producer.send_and_wait(
                    event.topic, event.payload, key=event.key.encode(), headers=headers_of(event)
                )
            for topic, value in raw:
                await producer.send_and_wait(topic, value, key=b"raw", headers=[("note", b"\xff\x00")])

    return send


@pytest.fixture
def consumer(kafka: LocalKafka) -> MakeConsumer:
    def make(handler: Handler, topic: Topic, group: str, **limits: Any) -> EventConsumer:
        return EventConsumer(
            kafka.bootstrap, group=group, topics=[topic], handle=handler, limits=ConsumerLimits(**limits)
        )

    return make


@pytest.fixture
def group() -> str:
    return f"g-{uuid.uuid4().hex[:8]}"


async def test_each_event_is_handled_and_not_again_after_a_restart(
    make_topic: MakeTopic, make_event: MakeEvent, produce: Produce, consumer: MakeConsumer, running: Running, group: str
) -> None:
    topic, first, second = await make_topic(), Handler(), Handler()
    await produce(*(make_event(n, topic=topic.name, key=f"k{n}") for n in range(20)))
    async with running(consumer(first, topic, group).run):
        await first.until(20)
        await produce(make_event(20, topic=topic.name))
        await first.until(21)

    await produce(make_event(21, topic=topic.name))
    async with running(consumer(second, topic, group).run):
        await second.until(1)

    assert set(first.applied.values()) == {1}
    # What was handled last may come again where the stop was faster than the commit.
    assert set(second.applied) <= {"id-20", "id-21"}
    assert "id-21" in second.applied


async def test_what_was_not_committed_comes_again(
    make_topic: MakeTopic, make_event: MakeEvent, produce: Produce, consumer: MakeConsumer, running: Running, group: str
) -> None:
    """A process that dies while it handles a batch loses nothing."""
    topic, stuck, second = await make_topic(), asyncio.Event(), Handler()

    async def hang(_: Sequence[ReceivedEvent]) -> None:
        stuck.set()
        await asyncio.Event().wait()

    await produce(*(make_event(n, topic=topic.name) for n in range(5)))
    async with running(consumer(hang, topic, group).run):
        await asyncio.wait_for(stuck.wait(), WAIT_S)
    async with running(consumer(second, topic, group).run):
        await second.until(5)

    assert sorted(second.applied) == [f"id-{n}" for n in range(5)]


async def test_poison_goes_to_the_dead_letters_and_the_rest_goes_on(
    make_topic: MakeTopic,
    make_event: MakeEvent,
    produce: Produce,
    consumer: MakeConsumer,
    running: Running,
    read_topic: ReadTopic,
    group: str,
) -> None:
    def fail(events: Sequence[ReceivedEvent]) -> None:
        if any(event.event.id == "id-2" for event in events):
            raise KeyError("a secret of the event")

    topic, handler = await make_topic(partitions=1), Handler(fail)
    await produce(*(make_event(n, topic=topic.name) for n in range(5)))
    async with running(consumer(handler, topic, group, attempts=2).run):
        await handler.until(4)
        (dead,) = await read_topic(f"{topic.name}.{group}.dlq", 1)

    headers = dict(dead.headers)
    assert sorted(handler.applied) == ["id-0", "id-1", "id-3", "id-4"]
    assert (dead.key, dead.value) == (b"k", b"payload 2")
    assert headers["ce_id"] == b"id-2"
    assert headers["dlq.topic"].decode() == topic.name
    assert (headers["dlq.partition"], headers["dlq.offset"], headers["dlq.attempts"]) == (b"0", b"2", b"2")
    assert (headers["dlq.error"], headers["dlq.group"].decode()) == (b"KeyError", group)
    assert handler.batches.count(["id-2"]) == 2


async def test_a_record_that_is_no_event_keeps_its_bytes(
    make_topic: MakeTopic,
    make_event: MakeEvent,
    produce: Produce,
    consumer: MakeConsumer,
    running: Running,
    read_topic: ReadTopic,
    group: str,
) -> None:
    topic, handler = await make_topic(partitions=1), Handler()
    await produce(make_event(0, topic=topic.name), raw=[(topic.name, b"\x00\xffjunk"), (topic.name, None)])
    await produce(make_event(1, topic=topic.name))
    async with running(consumer(handler, topic, group).run):
        await handler.until(2)
        dead = await read_topic(f"{topic.name}.{group}.dlq", 2)

    assert [record.value for record in dead] == [b"\x00\xffjunk", None]
    assert all(("note", b"\xff\x00") in record.headers for record in dead)
    assert all(dict(record.headers)["dlq.error"].startswith(b"MalformedEventError: ") for record in dead)


async def test_a_handler_may_call_an_event_malformed_at_once(
    make_topic: MakeTopic,
    make_event: MakeEvent,
    produce: Produce,
    consumer: MakeConsumer,
    running: Running,
    read_topic: ReadTopic,
    group: str,
) -> None:
    def fail(events: Sequence[ReceivedEvent]) -> None:
        if any(event.event.id == "id-0" for event in events):
            raise MalformedEventError("no lease")

    topic, handler = await make_topic(partitions=1), Handler(fail)
    await produce(*(make_event(n, topic=topic.name) for n in range(2)))
    async with running(consumer(handler, topic, group).run):
        await handler.until(1)
        (dead,) = await read_topic(f"{topic.name}.{group}.dlq", 1)

    assert dict(dead.headers)["dlq.error"] == b"MalformedEventError: no lease"
    assert handler.batches.count(["id-0"]) == 1


async def test_a_dependency_that_is_away_is_waited_for(
    make_topic: MakeTopic,
    make_event: MakeEvent,
    produce: Produce,
    consumer: MakeConsumer,
    running: Running,
    read_topic: ReadTopic,
    group: str,
) -> None:
    """Nothing is put aside, nothing is skipped, and the order stays."""
    refusals = 3

    def fail(_: Sequence[ReceivedEvent]) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise DownstackError(Reason.DEPENDENCY_UNAVAILABLE, "away")

    topic, handler = await make_topic(partitions=1), Handler(fail)
    await produce(*(make_event(n, topic=topic.name) for n in range(6)))
    async with running(consumer(handler, topic, group, attempts=1).run):
        await handler.until(6)

    assert list(handler.applied) == [f"id-{n}" for n in range(6)]
    assert refusals == 0
    assert await read_topic(f"{topic.name}.{group}.dlq") == []


async def test_duplicates_reach_the_handler_with_one_id(
    make_topic: MakeTopic, make_event: MakeEvent, produce: Produce, consumer: MakeConsumer, running: Running, group: str
) -> None:
    """Kafka may hold an event twice; the id is what an idempotent handler knows it by."""
    topic, handler = await make_topic(partitions=1), Handler()
    await produce(*([make_event(1, topic=topic.name)] * 10), make_event(2, topic=topic.name))
    async with running(consumer(handler, topic, group).run):
        await handler.until(2)

    assert handler.applied == {"id-1": 10, "id-2": 1}


async def test_two_members_share_the_work_and_lose_nothing(
    make_topic: MakeTopic, make_event: MakeEvent, produce: Produce, consumer: MakeConsumer, running: Running, group: str
) -> None:
    topic, shared = await make_topic(partitions=4), Handler()
    await produce(*(make_event(n, topic=topic.name, key=f"k{n}") for n in range(40)))
    async with running(consumer(shared, topic, group, max_batch=5).run):
        await shared.until(10)
        async with running(consumer(shared, topic, group, max_batch=5).run):
            await produce(*(make_event(n, topic=topic.name, key=f"k{n}") for n in range(40, 80)))
            await shared.until(80)
        await produce(*(make_event(n, topic=topic.name, key=f"k{n}") for n in range(80, 100)))
        await shared.until(100)

    assert sorted(shared.applied) == sorted(f"id-{n}" for n in range(100))


async def test_a_stalled_consumer_connects_anew(
    make_topic: MakeTopic,
    make_event: MakeEvent,
    produce: Produce,
    consumer: MakeConsumer,
    running: Running,
    group: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """aiokafka can stop fetching without an error; the watchdog notices that there is more to read."""
    from services.kit.events import consumer as module  # noqa: PLC0415

    topic, handler = await make_topic(partitions=1), Handler()
    await produce(make_event(0, topic=topic.name))
    made: list[Any] = []

    class Deaf(module.AIOKafkaConsumer):  # type: ignore[misc, name-defined]
        """Its first instance hears nothing after the first event."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

        async def getmany(self, **kwargs: Any) -> Any:
            if len(made) == 1 and handler.applied:
                await asyncio.sleep(0.05)
                return {}
            return await super().getmany(**kwargs)

    monkeypatch.setattr(module, "AIOKafkaConsumer", Deaf)
    async with running(consumer(handler, topic, group, stall_s=0.3).run):
        await handler.until(1)
        await produce(make_event(1, topic=topic.name))
        await handler.until(2)

    assert len(made) == 2
