"""Tokens cut into frames, on a clock that a test turns."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from downstack.types.v1.stream_pb2 import Delta

from services.kit.errors import DownstackError, Reason
from services.worker.app.outlet import Outlet, OutletLimits
from services.worker.domain.pace import Pace
from services.worker.ports import EngineOutput


class Late(Pace):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(shortest_s=0.02, longest_s=0.02)
        self.seen: list[float] = []

    def woke(self, *, late_s: float) -> None:
        self.seen.append(late_s)


def token(token_id: int) -> EngineOutput:
    return EngineOutput(token_ids=(token_id,), text=chr(token_id), cached_tokens=0)


def outlet(*, pace: Pace | None = None, on_stall: object = None, **limits: float) -> Outlet:
    chosen = OutletLimits(**limits)  # type: ignore[arg-type]
    pace = pace or Pace(shortest_s=chosen.flush_s, longest_s=chosen.longest_flush_s)
    return Outlet(chosen, pace, on_stall=on_stall or pytest.fail)  # type: ignore[arg-type]


async def rest(frames: AsyncGenerator[Delta, None]) -> list[list[int]]:
    return [list(delta.token_ids) async for delta in frames]


async def test_the_first_token_waits_for_nothing_and_the_next_ones_share_a_frame() -> None:
    """However long the interval is."""
    out = outlet(flush_s=3600.0, longest_flush_s=3600.0)
    frames = out.deltas()
    out.put(token(65))
    assert list((await anext(frames)).token_ids) == [65]
    for token_id in (66, 67, 68):
        out.put(token(token_id))
    following = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    assert not following.done()
    out.close()
    delta = await following
    assert (list(delta.token_ids), delta.text, delta.output_tokens) == ([66, 67, 68], "BCD", 4)
    assert await rest(frames) == []


async def test_a_token_after_a_pause_waits_for_nothing() -> None:
    """Only what comes within the interval is held back: at fewer than fifty tokens a second each has its frame."""
    out = outlet(flush_s=0.001)
    frames = out.deltas()
    for token_id in (65, 66, 67):
        out.put(token(token_id))
        assert list((await anext(frames)).token_ids) == [token_id]
        await asyncio.sleep(0.002)


async def test_a_stream_tells_how_late_it_woke_up() -> None:
    """A loop that was blocked meanwhile shows."""
    pace = Late()
    out = outlet(pace=pace)
    frames = out.deltas()
    out.put(token(65))
    await anext(frames)
    out.put(token(66))
    await anext(frames)
    assert len(pace.seen) == 1
    assert pace.seen[0] >= 0


async def test_an_error_comes_after_what_is_pending() -> None:
    """Nothing that was made is lost."""
    out = outlet(flush_s=3600.0)
    out.put(token(65))
    out.put(token(66))
    out.close(DownstackError(Reason.ENGINE_DEAD, "The engine was lost."))
    frames = out.deltas()
    assert list((await anext(frames)).token_ids) == [65, 66]
    with pytest.raises(DownstackError):
        await anext(frames)
    assert out.delivered == 2


async def test_what_waits_for_a_busy_reader_is_bounded() -> None:
    """The token beyond the bound ends the stream."""
    stalls: list[int] = []
    out = outlet(flush_s=0.0, max_pending_tokens=16, on_stall=lambda: stalls.append(1))
    frames = out.deltas()
    out.put(token(65))
    await anext(frames)  # and the reader is busy with it from now on
    for _ in range(16):
        out.put(token(66))
    assert not stalls
    out.put(token(66))
    assert stalls


async def test_a_reader_that_leaves_a_frame_unread_is_given_up() -> None:
    """After the stall time, also where nothing more comes."""
    stalled = asyncio.Event()
    out = outlet(stall_s=0.01, on_stall=stalled.set)
    frames = out.deltas()
    out.put(token(65))
    await anext(frames)
    async with asyncio.timeout(5):
        await stalled.wait()
