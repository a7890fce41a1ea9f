"""Tokens on their way to one reader: merged into frames while the reader is busy, and bounded."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from downstack.types.v1.stream_pb2 import Delta, TokenAlternative, TokenLogprob

from services.kit.errors import DownstackError
from services.worker.domain.pace import Pace
from services.worker.ports import EngineOutput
from services.worker.ports import TokenLogprob as EngineLogprob


@dataclass(frozen=True)
class OutletLimits:
    """How a stream is cut into frames, and what a reader may cost.

    Attributes:
        flush_s: The least time between two frames after the first token. More tokens in that time share a frame.
        longest_flush_s: What that time grows to where the process is busy.
        stall_s: The longest that a reader may leave a frame unread.
        max_pending_tokens: The most tokens that wait for a reader that is busy.
    """

    flush_s: float = 0.02
    longest_flush_s: float = 0.1
    stall_s: float = 10.0
    max_pending_tokens: int = 4096


@dataclass
class _Pending:
    """What one answer has for the reader."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[EngineLogprob] = field(default_factory=list)


class Outlet:
    """One writer, the lease's run; one reader, the RPC. The pace is that of all streams of the worker."""

    def __init__(self, limits: OutletLimits, pace: Pace, *, on_stall: Callable[[], None]) -> None:
        self._limits = limits
        self._pace = pace
        self._on_stall = on_stall
        self._pending: dict[int, _Pending] = {}
        self._pending_tokens = 0
        self._cached_tokens: int | None = None
        self._filled = asyncio.Event()
        self._closed = asyncio.Event()
        self._error: DownstackError | None = None
        self._sent = 0
        self._reader_busy = False
        self.delivered = 0

    def put(self, output: EngineOutput) -> None:
        """Adds what an engine made; calls `on_stall` where a busy reader leaves too much behind."""
        if self._closed.is_set():
            return
        if self._cached_tokens is None:
            self._cached_tokens = output.cached_tokens
        if not output.token_ids and not output.text:
            return
        pending = self._pending.setdefault(output.index, _Pending())
        pending.text.append(output.text)
        pending.token_ids += output.token_ids
        pending.logprobs += output.logprobs
        self._pending_tokens += len(output.token_ids)
        self._filled.set()
        if self._reader_busy and self._pending_tokens > self._limits.max_pending_tokens:
            self._on_stall()

    def close(self, error: DownstackError | None = None) -> None:
        """No more will come. With an error, the reader gets it after what is pending."""
        self._error = error
        self._closed.set()
        self._filled.set()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The frames, until `close`. Raises the error that it was closed with."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            await self._filled.wait()
            await self._wait_until(due)
            closed = self._closed.is_set()
            self._filled.clear()
            for delta in self._take():
                stalled = loop.call_later(self._limits.stall_s, self._on_stall)
                self._reader_busy = True
                try:
                    yield delta
                finally:
                    self._reader_busy = False
                    stalled.cancel()
                self.delivered += len(delta.token_ids)
            if closed:
                break
            due = loop.time() + self._pace.interval_s
        if self._error is not None:
            raise self._error

    async def _wait_until(self, due: float) -> None:
        """Gathers more tokens for a moment, unless there are none to come."""
        loop = asyncio.get_running_loop()
        if loop.time() >= due or self._closed.is_set():
            return
        try:
            async with asyncio.timeout_at(due):
                await self._closed.wait()
        except TimeoutError:
            self._pace.woke(late_s=loop.time() - due)

    def _take(self) -> list[Delta]:
        taken, self._pending = self._pending, {}
        self._pending_tokens = 0
        return [self._delta(index, pending) for index, pending in taken.items()]

    def _delta(self, index: int, pending: _Pending) -> Delta:
        first = self._sent == 0
        self._sent += len(pending.token_ids)
        delta = Delta(
            index=index,
            text="".join(pending.text),
            token_ids=pending.token_ids,
            logprobs=[_logprob(entry) for entry in pending.logprobs],
            output_tokens=self._sent,
        )
        if first and self._cached_tokens is not None:
            delta.cached_tokens = self._cached_tokens
        return delta


def _logprob(entry: EngineLogprob) -> TokenLogprob:
    top = [TokenAlternative(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top]
    return TokenLogprob(token_id=entry.token_id, logprob=entry.logprob, top=top)
