"""From the outbox to a real broker, also one that goes away."""

import asyncio
import collections
import os
import signal
import time

import pytest
from downstack.local.kafka import LocalKafka

from services.kit.events.event import received_event
from services.kit.events.metrics import RELAY_REBUILDS
from services.kit.events.relay import Relay
from services.kit.events.topics import Topic
from tests.integration.events.arrange import MakeEvent, MakeTopic, OpenOutbox, ReadTopic, Running


async def test_events_arrive_in_the_order_of_their_key_and_leave_the_outbox(
    kafka: LocalKafka,
    make_topic: MakeTopic,
    make_event: MakeEvent,
    read_topic: ReadTopic,
    open_outbox: OpenOutbox,
    running: Running,
) -> None:
    topic = await make_topic(partitions=4)
    async with open_outbox() as outbox:
        relay = Relay(outbox, bootstrap=kafka.bootstrap, topics=[topic])
        async with running(relay.run):
            for n in range(0, 600, 3):
                await outbox.append(*(make_event(n + i, topic=topic.name, key=f"k{(n + i) % 7}") for i in range(3)))
            assert await relay.flush(timeout_s=30) == 0
        assert (outbox.depth, outbox.bytes, outbox.oldest_age_s) == (0, 0, 0)

    by_key = collections.defaultdict(list)
    for record in await read_topic(topic.name):
        by_key[received_event(record).event.key].append(received_event(record).event)
    assert sum(len(events) for events in by_key.values()) == 600
    for key, events in by_key.items():
        expected = [make_event(n, topic=topic.name, key=key) for n in range(600) if key == f"k{n % 7}"]
        assert events == expected


async def test_what_an_earlier_process_left_is_shipped(
    kafka: LocalKafka,
    make_topic: MakeTopic,
    make_event: MakeEvent,
    read_topic: ReadTopic,
    open_outbox: OpenOutbox,
    running: Running,
) -> None:
    topic = await make_topic()
    async with open_outbox() as outbox:
        await outbox.append(*(make_event(n, topic=topic.name) for n in range(5)))
    async with open_outbox() as outbox:
        relay = Relay(outbox, bootstrap=kafka.bootstrap, topics=[topic])
        assert outbox.depth == 5
        async with running(relay.run):
            assert await relay.flush(timeout_s=30) == 0

    assert [received_event(record).event.id for record in await read_topic(topic.name)] == [f"id-{n}" for n in range(5)]


async def test_a_relay_makes_the_topics_it_needs(
    kafka: LocalKafka,
    make_topic: MakeTopic,
    make_event: MakeEvent,
    read_topic: ReadTopic,
    open_outbox: OpenOutbox,
    running: Running,
) -> None:
    topic = Topic("t.relay-made", partitions=1, retention_ms=3_600_000)
    async with open_outbox() as outbox:
        await outbox.append(make_event(1, topic=topic.name))
        relay = Relay(outbox, bootstrap=kafka.bootstrap, topics=[topic])
        async with running(relay.run):
            assert await relay.flush(timeout_s=30) == 0

    (record,) = await read_topic(topic.name)
    assert record.timestamp_type == 1  # LogAppendTime
    assert abs(record.timestamp / 1000 - time.time()) < 60
    assert received_event(record).event.time == make_event(1).time


@pytest.mark.slow
async def test_a_broker_that_is_killed_and_comes_back_gets_everything(
    kafka: LocalKafka,
    make_topic: MakeTopic,
    make_event: MakeEvent,
    read_topic: ReadTopic,
    open_outbox: OpenOutbox,
    running: Running,
) -> None:
    """Appends go on at their usual speed while it is away, and nothing is lost."""
    topic = await make_topic()
    async with open_outbox() as outbox:
        relay = Relay(outbox, bootstrap=kafka.bootstrap, topics=[topic], delivery_timeout_s=5)
        async with running(relay.run):
            await outbox.append(*(make_event(n, topic=topic.name) for n in range(50)))
            assert await relay.flush(timeout_s=30) == 0

            assert kafka.pid is not None
            os.kill(kafka.pid, signal.SIGKILL)
            slowest = 0.0
            for n in range(50, 100):
                begun = time.perf_counter()
                await outbox.append(make_event(n, topic=topic.name))
                slowest = max(slowest, time.perf_counter() - begun)
            assert await relay.flush(timeout_s=6) == 50

            await asyncio.to_thread(kafka.start, timeout_s=60)
            assert await relay.flush(timeout_s=60) == 0

    ids = [received_event(record).event.id for record in await read_topic(topic.name)]
    assert list(dict.fromkeys(ids)) == [f"id-{n}" for n in range(100)]
    assert slowest < 1.0


async def test_a_broker_that_hangs_is_given_up_and_gets_everything_later(
    kafka: LocalKafka,
    make_topic: MakeTopic,
    make_event: MakeEvent,
    read_topic: ReadTopic,
    open_outbox: OpenOutbox,
    running: Running,
) -> None:
    """An idempotent producer would wait for it for ever, and its flush too."""
    topic = await make_topic(partitions=1)
    async with open_outbox() as outbox:
        relay = Relay(outbox, bootstrap=kafka.bootstrap, topics=[topic], delivery_timeout_s=0.5)
        async with running(relay.run):
            await outbox.append(make_event(0, topic=topic.name))
            assert await relay.flush(timeout_s=30) == 0
            before = _given_up()

            assert kafka.pid is not None
            os.kill(kafka.pid, signal.SIGSTOP)
            try:
                await outbox.append(*(make_event(n, topic=topic.name) for n in range(1, 20)))
                assert await relay.flush(timeout_s=3) == 19
            finally:
                os.kill(kafka.pid, signal.SIGCONT)
            assert await relay.flush(timeout_s=60) == 0

    ids = [received_event(record).event.id for record in await read_topic(topic.name)]
    assert list(dict.fromkeys(ids)) == [f"id-{n}" for n in range(20)]
    assert _given_up() > before


def _given_up() -> float:
    return sum(
        sample.value
        for metric in RELAY_REBUILDS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


async def test_a_relay_without_a_broker_can_be_stopped_at_once(make_event: MakeEvent, open_outbox: OpenOutbox) -> None:
    async with open_outbox() as outbox:
        await outbox.append(make_event(1))
        relay = Relay(outbox, bootstrap="127.0.0.1:9")
        task = asyncio.create_task(relay.run())
        assert await relay.flush(timeout_s=0.5) == 1
        task.cancel()
        begun = time.perf_counter()
        await asyncio.gather(task, return_exceptions=True)

        assert task.cancelled()
        assert time.perf_counter() - begun < 2
        assert outbox.depth == 1
