"""Where records go that a consumer group cannot handle: byte for byte, with the reason."""

import asyncio
import dataclasses
from typing import Any

from aiokafka import AIOKafkaProducer

from services.kit.events.metrics import CONSUMER_DEAD
from services.kit.events.producer import send
from services.kit.events.topics import dead_letters_of


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a record was put aside. `error` never quotes the record."""

    error: str
    attempts: int
    failed_at: float


class DeadLetters:
    """Writes to the dead-letter topics of one consumer group."""

    def __init__(self, producer: AIOKafkaProducer, *, group: str, timeout_s: float) -> None:
        self._producer = producer
        self._group = group
        self._timeout_s = timeout_s

    async def put(self, record: Any, failure: Failure) -> None:
        """Return when Kafka has the record. Raises KafkaError or TimeoutError."""
        reason = {
            "dlq.topic": record.topic,
            "dlq.partition": str(record.partition),
            "dlq.offset": str(record.offset),
            "dlq.group": self._group,
            "dlq.error": failure.error[:200],
            "dlq.attempts": str(failure.attempts),
            "dlq.failed_at": f"{failure.failed_at:.3f}",
        }
        headers = [*record.headers, *((name, value.encode()) for name, value in reason.items())]
        topic = dead_letters_of(record.topic, self._group).name
        async with asyncio.timeout(self._timeout_s):
            await (await send(self._producer, topic, record.value, key=record.key, headers=headers))
        CONSUMER_DEAD.labels(self._group, record.topic, failure.error.partition(":")[0]).inc()
