"""An idempotent Kafka producer that can be given up: aiokafka's own waits for ever for a broker that is gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

_SENDER_TIMEOUT_S = 1.0
_CLOSE_TIMEOUT_S = 5.0
_RETRY_BACKOFF_MS = 500
# aiokafka keeps one batch of a partition in flight, so that a large one is what makes it fast.
_MAX_BATCH_BYTES = 262_144


@contextlib.asynccontextmanager
async def open_producer(bootstrap: str, *, timeout_s: float) -> AsyncIterator[AIOKafkaProducer]:
    """A started producer with acks=all. Raises KafkaError or TimeoutError; leaving the block never waits for Kafka."""
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,  # implies acks=all
        request_timeout_ms=int(timeout_s * 1000),
        max_batch_size=_MAX_BATCH_BYTES,
        retry_backoff_ms=_RETRY_BACKOFF_MS,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await producer.start()
        yield producer
    finally:
        await _give_up(producer)


async def send(
    producer: AIOKafkaProducer,
    topic: str,
    value: bytes | None,
    *,
    key: bytes | None,
    headers: Sequence[tuple[str, bytes]],
) -> "asyncio.Future[object]":
    """Hand a record to the producer. The future is done when Kafka has acknowledged it."""
    future: asyncio.Future[object] = await producer.send(topic, value, key=key, headers=list(headers))
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may be gone by then
    return future


async def _give_up(producer: AIOKafkaProducer) -> None:
    """Close the producer without its stop(), which first flushes: in idempotent mode no batch ever expires."""
    producer._closed = True  # noqa: SLF001 - there is no public way to leave without a flush
    sender = producer._sender.sender_task  # noqa: SLF001
    if sender is not None:
        # The first cancellation lets requests under way end, the second one does not.
        for _ in range(2):
            sender.cancel()
            await asyncio.wait({sender}, timeout=_SENDER_TIMEOUT_S)
        if sender.done() and not sender.cancelled():
            sender.exception()  # why it died was told to the futures of its events
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await producer.client.close()
