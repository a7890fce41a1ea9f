"""Batches of events to a handler, each at least once; what cannot be handled is put aside and never blocks the rest."""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from services.kit.clock import Clock, SystemClock
from services.kit.errors import Code, DownstackError
from services.kit.events.dead_letters import DeadLetters, Failure
from services.kit.events.event import MalformedEventError, ReceivedEvent, received_event
from services.kit.events.metrics import (
    CONSUMER_EVENTS,
    CONSUMER_LAG,
    CONSUMER_REBUILDS,
    CONSUMER_RETRIES,
)
from services.kit.events.producer import open_producer
from services.kit.events.topics import Topic, dead_letters_of, ensure_topics

_log = structlog.get_logger(__name__)
_POLL_S = 1.0
_STOP_TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
# A refusal of these kinds says something about the moment, not about the event.
_TRANSIENT = frozenset({Code.UNAVAILABLE, Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})

Handle = Callable[[Sequence[ReceivedEvent]], Awaitable[None]]


class _LaterError(Exception):
    """The batch is to be handled again from its first record."""


class _StalledError(Exception):
    """There is more to read, and nothing arrives."""


@dataclasses.dataclass(frozen=True)
class ConsumerLimits:
    """The bounds of a consumer.

    Attributes:
        max_batch: The most events in one call of the handler.
        attempts: How often a single event is tried before it is put aside.
        stall_s: Seconds without an event, while there are some, until the connection is made anew.
        kafka_timeout_s: Seconds for one exchange with Kafka.
    """

    max_batch: int = 500
    attempts: int = 3
    stall_s: float = 30.0
    kafka_timeout_s: float = 30.0


class EventConsumer:
    """One member of a consumer group.

    `handle` gets a batch in the order of each partition and must be idempotent: a batch comes again after a crash, a
    rebalance or a failure. Offsets are committed when it has returned. What it raises decides:

    - a DownstackError UNAVAILABLE, ABORTED, DEADLINE_EXCEEDED or RESOURCE_EXHAUSTED: the batch is tried again, with
      growing pauses, for as long as it takes;
    - anything else: the events are tried one by one; one that fails `attempts` times, or at once with
      MalformedEventError, goes to `<topic>.<group>.dlq` with its bytes and headers.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        group: str,
        topics: Sequence[Topic],
        handle: Handle,
        limits: ConsumerLimits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._group = group
        self._topics = tuple(topics)
        self._handle = handle
        self._limits = limits or ConsumerLimits()
        self._clock = clock or SystemClock()
        self._busy = asyncio.Lock()
        self._pause_s = _FIRST_PAUSE_S
        self._progress_at = self._clock.monotonic()

    async def run(self) -> None:
        """Consume until cancelled, through every failure of Kafka and of what the handler depends on."""
        needed = [*self._topics, *(dead_letters_of(topic.name, self._group) for topic in self._topics)]
        while True:
            try:
                await ensure_topics(self._bootstrap, topics=needed, timeout_s=self._limits.kafka_timeout_s)
                async with self._consumer() as consumer, self._dead_letters() as dead_letters:
                    self._progress_at = self._clock.monotonic()
                    while True:
                        await self._step(consumer, dead_letters)
            except (KafkaError, DownstackError, OSError, TimeoutError, _StalledError) as error:
                fault = type(error).__name__
                CONSUMER_REBUILDS.labels(self._group, fault).inc()
                _log.warning("consumer_interrupted", group=self._group, fault=fault)
            await self._pause()

    async def _step(self, consumer: AIOKafkaConsumer, dead_letters: DeadLetters) -> None:
        first: dict[TopicPartition, int] = {}
        try:
            async with self._busy, asyncio.timeout(None) as limit:
                limit.reschedule(asyncio.get_running_loop().time() + _POLL_S + self._limits.kafka_timeout_s)
                found = await consumer.getmany(timeout_ms=int(_POLL_S * 1000), max_records=self._limits.max_batch)
                limit.reschedule(None)
                if not found:
                    await self._check_progress(consumer)
                    return
                first = {partition: records[0].offset for partition, records in found.items()}
                await self._process([record for records in found.values() for record in records], dead_letters)
                await self._commit(consumer, {partition: rs[-1].offset + 1 for partition, rs in found.items()})
        except _LaterError:
            with contextlib.suppress(IllegalStateError):  # a partition that is no longer ours
                for partition, offset in first.items():
                    consumer.seek(partition, offset)
            await self._pause()

    async def _process(self, records: Sequence[Any], dead_letters: DeadLetters) -> None:
        events: list[tuple[Any, ReceivedEvent]] = []
        for record in records:
            try:
                events.append((record, received_event(record)))
            except MalformedEventError as error:
                await self._put_aside(dead_letters, record, error, attempts=1)
        if not events:
            return
        try:
            await self._handle([event for _, event in events])
        except Exception as error:  # noqa: BLE001 - the loop's boundary: a handler's mistake must not stop the ledger
            self._raise_if_transient(error)
            _log.warning("batch_failed", group=self._group, fault=type(error).__name__, events=len(events))
            for record, event in events:
                await self._process_alone(record, event, dead_letters)
        self._pause_s = _FIRST_PAUSE_S

    async def _process_alone(self, record: Any, event: ReceivedEvent, dead_letters: DeadLetters) -> None:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                await self._handle([event])
            except Exception as error:  # noqa: BLE001 - as above
                self._raise_if_transient(error)
                if attempt == self._limits.attempts or isinstance(error, MalformedEventError):
                    await self._put_aside(dead_letters, record, error, attempts=attempt)
                    return
            else:
                CONSUMER_EVENTS.labels(self._group, record.topic).inc()
                return

    def _raise_if_transient(self, error: Exception) -> None:
        if isinstance(error, DownstackError) and error.code in _TRANSIENT:
            CONSUMER_RETRIES.labels(self._group, error.reason).inc()
            _log.warning("batch_postponed", group=self._group, reason=error.reason)
            raise _LaterError from error

    async def _put_aside(self, dead_letters: DeadLetters, record: Any, error: Exception, *, attempts: int) -> None:
        name = type(error).__name__
        told = f"{name}: {error}" if isinstance(error, MalformedEventError) else name  # other texts may quote data
        await dead_letters.put(record, Failure(error=told, attempts=attempts, failed_at=self._clock.now()))
        _log.error("event_put_aside", group=self._group, topic=record.topic, offset=record.offset, error=told)

    async def _commit(self, consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        self._progress_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._limits.kafka_timeout_s):
                await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError):
            # A rebalance came first: the next owner handles the batch again.
            _log.info("commit_lost_to_rebalance", group=self._group)
        self._measure(consumer, offsets)

    def _measure(self, consumer: AIOKafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        behind: dict[str, int] = {}
        for partition, offset in offsets.items():
            end = consumer.highwater(partition) if partition in consumer.assignment() else None
            behind[partition.topic] = behind.get(partition.topic, 0) + max(0, (end or offset) - offset)
        for topic, events in behind.items():
            CONSUMER_LAG.labels(self._group, topic).set(events)

    async def _check_progress(self, consumer: AIOKafkaConsumer) -> None:
        """Raise _StalledError if there is something to read and nothing came for a while."""
        if self._clock.monotonic() - self._progress_at < self._limits.stall_s:
            return
        async with asyncio.timeout(self._limits.kafka_timeout_s):
            partitions = list(consumer.assignment())
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                if await consumer.position(partition) < ends[partition]:
                    raise _StalledError
        self._progress_at = self._clock.monotonic()

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _dead_letters(self) -> AsyncIterator[DeadLetters]:
        timeout_s = self._limits.kafka_timeout_s
        async with open_producer(self._bootstrap, timeout_s=timeout_s) as producer:
            yield DeadLetters(producer, group=self._group, timeout_s=timeout_s)

    @contextlib.asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=int(self._limits.kafka_timeout_s * 1000),
        )
        consumer.subscribe([topic.name for topic in self._topics], listener=_FinishFirst(self._busy))
        try:
            async with asyncio.timeout(self._limits.kafka_timeout_s):
                await consumer.start()
            yield consumer
        finally:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await consumer.stop()


class _FinishFirst(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Makes a rebalance wait for the batch under way and its commit."""

    def __init__(self, busy: asyncio.Lock) -> None:
        self._busy = busy

    async def on_partitions_revoked(self, revoked: object) -> None:  # noqa: ARG002 - the library's signature
        async with self._busy:
            pass

    async def on_partitions_assigned(self, assigned: object) -> None:
        """Positions come from the committed offsets."""
