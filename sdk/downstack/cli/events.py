"""The command `events tail`: read along on Kafka."""

import asyncio
import json as jsonlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from google.protobuf.message import DecodeError, Message

from downstack.cli.output import CommandError, as_dict, console
from downstack.cli.session import DataDirOption, JsonOption, KafkaOption, Where
from downstack.events.v1 import events_pb2

events = typer.Typer(help="Read the events on Kafka.", no_args_is_help=True, rich_markup_mode=None)

TOPICS: Mapping[str, tuple[str, type[Message]]] = {
    "audit": ("downstack.audit.v1", events_pb2.AuditRecorded),
    "usage": ("downstack.usage.v1", events_pb2.UsageRecorded),
    "workers": ("downstack.workers.v1", events_pb2.WorkerChanged),
}
"""Topic and payload by the short name that people use."""

_POLL_MS = 500
_CONNECT_TIMEOUT_S = 10


@events.callback()
def group() -> None:
    """Make `tail` a subcommand although it is the only one."""


@events.command()
def tail(
    topic: Annotated[list[str] | None, typer.Option(help="audit, usage or workers; may be repeated.")] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Start with the oldest event.")] = False,
    max_events: Annotated[int, typer.Option("--max", min=0, help="Stop after so many. 0: never.")] = 0,
    kafka: KafkaOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show events as they come: one line each."""
    names = topic or list(TOPICS)
    for name in names:
        if name not in TOPICS:
            raise typer.BadParameter(f"--topic is one of {', '.join(TOPICS)}, not {name!r}")
    bootstrap = Where(kafka=kafka, data_dir=data_dir).endpoint("kafka", option="--kafka")
    show = _show_json if json else _show_line
    asyncio.run(_tail(bootstrap, names, from_beginning=from_beginning, max_events=max_events, show=show))


async def _tail(
    bootstrap: str,
    names: list[str],
    *,
    from_beginning: bool,
    max_events: int,
    show: Callable[[str, dict[str, Any]], None],
) -> None:
    consumer = await connect(bootstrap)
    kinds = {TOPICS[name][0]: (name, TOPICS[name][1]) for name in names}
    try:
        await _seek(consumer, list(kinds), from_beginning=from_beginning)
        shown = 0
        while not max_events or shown < max_events:
            batches = await consumer.getmany(timeout_ms=_POLL_MS, max_records=(max_events - shown) or None)
            for record in sorted((r for batch in batches.values() for r in batch), key=lambda r: r.timestamp):
                name, kind = kinds[record.topic]
                show(name, _event(record, kind))
                shown += 1
    finally:
        await consumer.stop()


async def connect(bootstrap: str) -> Any:
    """A consumer without a group, started. Raises CommandError where Kafka does not answer."""
    from aiokafka import AIOKafkaConsumer  # noqa: PLC0415 -- an extra, and slow to load
    from aiokafka.errors import KafkaError  # noqa: PLC0415

    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await consumer.start()
    except (KafkaError, TimeoutError):
        await consumer.stop()
        raise CommandError(f"Kafka does not answer at {bootstrap}", reason="UNREACHABLE") from None
    return consumer


async def partitions(consumer: Any, topics: list[str]) -> list[Any]:
    """The partitions of some topics, in order. A topic that does not exist has none."""
    from aiokafka import TopicPartition  # noqa: PLC0415 -- an extra, and slow to load

    await consumer._client.force_metadata_update()  # noqa: SLF001 -- there is no public way
    return [
        TopicPartition(topic, number)
        for topic in topics
        for number in sorted(consumer.partitions_for_topic(topic) or ())
    ]


async def _seek(consumer: Any, topics: list[str], *, from_beginning: bool) -> None:
    assigned = await partitions(consumer, topics)
    if not assigned:
        raise CommandError(f"there is no topic {' or '.join(topics)}", reason="NO_TOPIC")
    consumer.assign(assigned)
    await (consumer.seek_to_beginning() if from_beginning else consumer.seek_to_end())


def _event(record: Any, kind: type[Message]) -> dict[str, Any]:
    """A record as plain data: its place, its CloudEvents attributes, its payload."""
    attributes = {name.removeprefix("ce_"): value.decode() for name, value in record.headers}
    try:
        payload: Any = as_dict(kind.FromString(record.value or b""))
    except DecodeError:
        payload = None
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key.decode(errors="replace") if record.key else "",
        "time": datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(timespec="milliseconds"),
        "attributes": attributes,
        "payload": payload,
    }


def _show_json(_: str, event: dict[str, Any]) -> None:
    print(jsonlib.dumps(event, ensure_ascii=False), flush=True)


def _show_line(name: str, event: dict[str, Any]) -> None:
    payload = event["payload"] or {}
    grant = payload.get("grant", {})
    facts = [field for field in payload if isinstance(payload[field], dict) and field not in {"grant", "spec"}]
    what = {"usage": payload.get("finish_reason", ""), "workers": payload.get("phase", "")}.get(
        name, "".join(facts[:1])
    )
    who = payload.get("request_id") or grant.get("request_id") or payload.get("worker_id") or ""
    place = f"{event['partition']}/{event['offset']}"
    console().print(f"{event['time']} {name:8} {place:>8} {what:24} {who}", markup=False)


async def end_offsets(bootstrap: str) -> dict[str, int]:
    """How many events each topic has had so far."""
    consumer = await connect(bootstrap)
    try:
        names = [topic for topic, _ in TOPICS.values()]
        ends = await consumer.end_offsets(await partitions(consumer, names))
    finally:
        await consumer.stop()
    return {name: sum(end for place, end in ends.items() if place.topic == name) for name in names}
