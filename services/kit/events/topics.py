"""Every topic and every consumer group of Downstack, declared once."""

import asyncio
import dataclasses
from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from services.kit.errors import DownstackError, Reason

_DAY_MS = 86_400_000
_CREATED, _EXISTS = 0, 36  # Kafka's error codes


@dataclasses.dataclass(frozen=True)
class Topic:
    """A topic. Order holds between events of one key, and nowhere else."""

    name: str
    partitions: int
    retention_ms: int
    cleanup: str = "delete"

    @property
    def config(self) -> dict[str, str]:
        return {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms),
            # The time of arrival bounds the retention: a fact that arrives late must not be deleted on arrival.
            "message.timestamp.type": "LogAppendTime",
        }


USAGE = Topic("downstack.usage.v1", partitions=6, retention_ms=30 * _DAY_MS)
"""One event for each lease that ended, keyed by tenant. The ledger is the lasting record."""

AUDIT = Topic("downstack.audit.v1", partitions=6, retention_ms=365 * _DAY_MS)
"""What happened to requests, documents, tenants and keys, keyed by tenant and conversation."""

WORKERS = Topic("downstack.workers.v1", partitions=1, retention_ms=7 * _DAY_MS, cleanup="compact,delete")
"""The last known phase of each worker, keyed by worker."""

LEDGER_GROUP = "downstack-ledger"
"""The scheduler's consumers, which fold usage and decisions into the ledger."""


def dead_letters_of(topic: str, group: str) -> Topic:
    """Where a consumer group puts the events of a topic that it cannot handle."""
    return Topic(f"{topic}.{group}.dlq", partitions=1, retention_ms=90 * _DAY_MS)


TOPICS = (
    USAGE,
    AUDIT,
    WORKERS,
    dead_letters_of(USAGE.name, LEDGER_GROUP),
    dead_letters_of(AUDIT.name, LEDGER_GROUP),
)


async def ensure_topics(bootstrap: str, *, topics: Sequence[Topic] = TOPICS, timeout_s: float = 30.0) -> None:
    """Create the topics that are missing, with the broker's own replication factor; leave the others as they are.

    Raises DownstackError DEPENDENCY_UNAVAILABLE where Kafka cannot be reached or refuses.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=int(timeout_s * 1000))
    # -1 and no assignment: the broker's own replication factor.
    wanted = [NewTopic(topic.name, topic.partitions, -1, {}, topic_configs=topic.config) for topic in topics]
    try:
        async with asyncio.timeout(timeout_s):
            await admin.start()
            there = await admin.list_topics()
            missing = [topic for topic in wanted if topic.name not in there]
            # Asked for only where needed: in a managed cluster we may not be allowed to create any.
            answer = await admin.create_topics(missing) if missing else None
    except (KafkaError, OSError, TimeoutError) as error:
        raise _unavailable(type(error).__name__) from error
    finally:
        await admin.close()
    for topic, code, *_ in answer.topic_errors if answer is not None else ():
        if code not in (_CREATED, _EXISTS):
            raise _unavailable(f"topic {topic}: error {code}")


def _unavailable(fault: str) -> DownstackError:
    return DownstackError(
        Reason.DEPENDENCY_UNAVAILABLE,
        "Kafka cannot be used right now.",
        metadata={"dependency": "kafka", "fault": fault},
        retry_after_s=1.0,
    )
