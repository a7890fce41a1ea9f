"""The outbox on a real disk, with a real crash."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit.clock import ManualClock
from services.kit.errors import DownstackError, Reason
from services.kit.events.event import MAX_PAYLOAD_BYTES
from services.kit.events.journal import JournalError, size_of
from services.kit.events.outbox import Outbox
from tests.integration.events.arrange import MakeEvent, OpenOutbox

ROOT = Path(__file__).resolve().parents[3]

# Appends for ever, and says after each append that it returned.
WRITER = """
import asyncio, sys
from pathlib import Path
from services.kit.events.event import Event
from services.kit.events.outbox import Outbox

async def main():
    async with Outbox.open(Path(sys.argv[1]), max_events=10**6, max_bytes=10**9) as outbox:
        async def lane(name):
            n = 0
            while True:
                await outbox.append(Event(f"{name}-{n}", "s", "t", "topic", name, b"x" * 100, 0.0))
                print(f"{name}-{n}", flush=True)
                n += 1
        await asyncio.gather(*(lane(f"lane{i}") for i in range(8)))

asyncio.run(main())
"""


async def test_what_append_returned_for_survives_sigkill(tmp_path: Path, make_event: MakeEvent) -> None:
    """Every event that the killed process was told is durable is there, once, and in order."""
    path = tmp_path / "outbox.db"
    writer = subprocess.Popen(  # noqa: ASYNC220 - it blocks nobody here
        [sys.executable, "-c", WRITER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}", "PATH": "/usr/bin:/bin"},
    )
    assert writer.stdout is not None
    told = [writer.stdout.readline().strip() for _ in range(400)]
    writer.send_signal(signal.SIGKILL)
    told += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL

    async with Outbox.open(path, max_events=10**6, max_bytes=10**9) as outbox:
        entries = await outbox.read(10**6)
        ids = [entry.event.id for entry in entries]
        assert outbox.depth == len(entries)
        assert outbox.bytes == sum(entry.size for entry in entries)

    assert set(told) <= set(ids)
    assert len(set(ids)) == len(ids)
    for lane in {name.partition("-")[0] for name in told}:
        numbers = [int(name.partition("-")[2]) for name in ids if name.startswith(f"{lane}-")]
        assert numbers == list(range(len(numbers)))


async def test_entries_come_in_the_order_of_appending_and_go_when_deleted(
    open_outbox: OpenOutbox, make_event: MakeEvent
) -> None:
    async with open_outbox() as outbox:
        await outbox.append(make_event(1), make_event(2))
        await outbox.append(make_event(3))
        first = await outbox.read(2)
        await outbox.delete(first)
        rest = await outbox.read(10)

        assert [entry.event for entry in (*first, *rest)] == [make_event(1), make_event(2), make_event(3)]
        assert outbox.depth == 1

    async with open_outbox() as reopened:
        assert [entry.event.id for entry in await reopened.read(10)] == ["id-3"]
        assert reopened.depth == 1


async def test_numbers_are_never_used_again(open_outbox: OpenOutbox, make_event: MakeEvent) -> None:
    """Otherwise a late deletion could hit another event."""
    async with open_outbox() as outbox:
        await outbox.append(make_event(1))
        (first,) = await outbox.read(1)
        await outbox.delete([first])
    async with open_outbox() as outbox:
        await outbox.append(make_event(2))
        (second,) = await outbox.read(1)

    assert second.seq > first.seq


async def test_many_appends_share_a_commit(
    open_outbox: OpenOutbox, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = []
    async with open_outbox() as outbox:
        commit = outbox._writer._journal.commit
        monkeypatch.setattr(outbox._writer._journal, "commit", lambda: (commits.append(1), commit()))
        await asyncio.gather(*(outbox.append(make_event(n)) for n in range(500)))

        assert outbox.depth == 500
        assert len(commits) < 100


@pytest.mark.parametrize("bound", [{"max_events": 10}, {"max_bytes": 10 * 450}])
async def test_the_bound_refuses_new_work_first_and_then_events(
    open_outbox: OpenOutbox, make_event: MakeEvent, bound: dict[str, int]
) -> None:
    async with open_outbox(**bound) as outbox:
        payload = b"x" * (450 - size_of(make_event(payload=b"x")) + 1)
        for n in range(9):
            outbox.check_open()
            await outbox.append(make_event(n, payload=payload))
        with pytest.raises(DownstackError) as new_work:
            outbox.check_open()
        await outbox.append(make_event(9, payload=payload))
        with pytest.raises(DownstackError) as event:
            await outbox.append(make_event(10, payload=payload))

        assert new_work.value.reason is event.value.reason is Reason.JOURNAL_FULL
        assert new_work.value.retry_after_s
        await outbox.delete(await outbox.read(5))
        outbox.check_open()
        await outbox.append(make_event(11))


async def test_an_append_is_whole_or_not_at_all(open_outbox: OpenOutbox, make_event: MakeEvent) -> None:
    async with open_outbox(max_events=10) as outbox:
        with pytest.raises(DownstackError):
            await outbox.append(*(make_event(n) for n in range(11)))

        assert outbox.depth == 0
        assert await outbox.read(100) == []


async def test_a_disk_that_refuses_closes_the_outbox_until_it_takes_again(
    open_outbox: OpenOutbox, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_outbox() as outbox:
        with monkeypatch.context() as patch:
            patch.setattr(outbox._writer._journal, "append", _refuse)
            with pytest.raises(DownstackError) as caught:
                await outbox.append(make_event(1))
            with pytest.raises(DownstackError):
                outbox.check_open()
            assert outbox.depth == 0
        await outbox.append(make_event(2))
        outbox.check_open()

        assert caught.value.reason is Reason.JOURNAL_FULL
        assert [entry.event.id for entry in await outbox.read(10)] == ["id-2"]


def _refuse(*_: object, **__: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


async def test_an_event_that_kafka_would_never_take_is_refused(open_outbox: OpenOutbox, make_event: MakeEvent) -> None:
    async with open_outbox() as outbox:
        with pytest.raises(DownstackError) as caught:
            await outbox.append(make_event(payload=b"x" * (MAX_PAYLOAD_BYTES + 1)))

        assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
        assert outbox.depth == 0


async def test_the_age_is_that_of_the_oldest_event(tmp_path: Path, make_event: MakeEvent) -> None:
    clock = ManualClock()
    async with Outbox.open(tmp_path / "o.db", max_events=10, max_bytes=10**6, clock=clock) as outbox:
        assert outbox.oldest_age_s == 0
        await outbox.append(make_event(1))
        clock.advance(5)
        await outbox.append(make_event(2))
        clock.advance(2)
        assert outbox.oldest_age_s == 7
        await outbox.delete(await outbox.read(1))
        assert outbox.oldest_age_s == 2
        await outbox.delete(await outbox.read(1))
        assert outbox.oldest_age_s == 0


async def test_a_file_has_one_process(open_outbox: OpenOutbox) -> None:
    async with open_outbox():
        with pytest.raises(JournalError, match="Another process"):
            async with open_outbox():
                pytest.fail("opened twice")
    async with open_outbox():
        pass


@pytest.mark.parametrize("content", [b"not a database at all" * 100, None])
async def test_a_file_that_is_not_ours_is_refused_in_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "outbox.db"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA user_version=99")
        connection.close()
    else:
        path.write_bytes(content)

    with pytest.raises(JournalError, match=r"The outbox .*(cannot be read|has version 99)"):
        async with Outbox.open(path, max_events=10, max_bytes=10**6):
            pytest.fail("opened")


async def test_a_cancelled_append_may_be_written_and_is_counted(open_outbox: OpenOutbox, make_event: MakeEvent) -> None:
    async with open_outbox() as outbox:
        task = asyncio.create_task(outbox.append(make_event(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        entries = await outbox.read(10)

        assert outbox.depth == len(entries) == 1
