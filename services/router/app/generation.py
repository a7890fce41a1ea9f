"""Places a prepared request and passes its tokens on, over at most two workers."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from services.kit.clock import Clock
from services.kit.errors import Code, DownstackError, Reason
from services.router.app.accounting import Accounting
from services.router.app.call import Run
from services.router.app.preparation import Prepared
from services.router.domain.attempts import Failed, as_told, deadline_passed, may_try_another
from services.router.domain.outcome import Cost, FinishReason, Timings, Usage
from services.router.domain.prompt import Passage
from services.router.ports import DeltaFrame, FinishedFrame, Placement, SchedulerPort, StartedFrame, WorkerPort

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    """Who answers, and why. Sent right before the first tokens, when it can no longer change."""

    request_id: str
    placement: Placement
    passages: tuple[Passage, ...]
    cached_tokens: int | None
    prompt_tokens: int
    retrieval_degraded: bool


@dataclass(frozen=True, slots=True)
class AnswerFinished:
    """The last frame, with the router's own durations."""

    sequence: int
    finish_reason: FinishReason
    usage: Usage
    cost: Cost | None
    timings: Timings


AnswerFrame = AnswerStarted | DeltaFrame | AnswerFinished


class Generation:
    """The data path of one answer."""

    def __init__(self, *, scheduler: SchedulerPort, workers: WorkerPort, accounting: Accounting, clock: Clock) -> None:
        self._scheduler = scheduler
        self._workers = workers
        self._accounting = accounting
        self._clock = clock

    async def place(self, run: Run, prepared: Prepared) -> Placement:
        """One placement; the caller's deadline bounds the wait. DEADLINE_IN_QUEUE, and what the scheduler raises."""
        order = replace(prepared.order, attempt=run.attempt + 1, excluded_workers=run.excluded)
        timeout_s = run.call.remaining_s(self._clock.monotonic())
        try:
            placement = await self._scheduler.place(run.call.identity, order, timeout_s=timeout_s)
        except DownstackError as error:
            if error.code != Code.DEADLINE_EXCEEDED:
                raise
            raise deadline_passed(Reason.DEADLINE_IN_QUEUE) from error
        run.attempt += 1
        run.progress.queue_ms = placement.queue_ms
        return placement

    async def stream(self, run: Run, prepared: Prepared) -> AsyncGenerator[AnswerFrame, None]:
        """The frames of the answer. A worker that fails before anything was delivered is replaced once."""
        while True:
            run.placement = placement = await self.place(run, prepared)
            try:
                async with aclosing(self._attempt(run, prepared, placement)) as frames:
                    async for frame in frames:
                        yield frame
            except DownstackError as error:
                self._after_failure(run, placement, error)
            else:
                return

    def _after_failure(self, run: Run, placement: Placement, error: DownstackError) -> None:
        """Free the way for another attempt, or raise what the caller is told."""
        failed = Failed(
            error=error,
            attempt=run.attempt,
            delivered=run.delivered,
            output_tokens=run.progress.output_tokens,
        )
        again = may_try_another(failed)
        _log.warning(
            "attempt failed",
            worker=placement.worker_id,
            attempt=run.attempt,
            reason=error.reason.value,
            detail=error.message,
            again=again,
        )
        if not again:
            raise as_told(failed) from error
        self._accounting.abandon(run, placement)
        run.placement = None
        run.excluded = (*run.excluded, placement.worker_id)

    async def _attempt(self, run: Run, prepared: Prepared, placement: Placement) -> AsyncGenerator[AnswerFrame, None]:
        call = self._workers.generate(
            run.call.identity,
            endpoint=placement.endpoint,
            ticket=placement.ticket,
            prompt_token_ids=prepared.token_ids,
            sampling=prepared.sampling,
            timeout_s=run.call.remaining_s(self._clock.monotonic()),
        )
        progress = run.progress
        async with call as frames:
            async for frame in frames:
                if isinstance(frame, StartedFrame):
                    progress.cached_tokens = frame.cached_tokens
                    continue
                if isinstance(frame, DeltaFrame):
                    progress.token_frame(
                        output_tokens=frame.output_tokens,
                        cached_tokens=frame.cached_tokens,
                        now_s=self._clock.monotonic(),
                    )
                if not run.delivered:
                    run.delivered = True
                    yield self._started(run, prepared, placement)
                if isinstance(frame, FinishedFrame):
                    yield self._finished(run, frame)
                    return
                yield frame
        raise DownstackError(Reason.WORKER_LOST_MID_STREAM, "the worker's stream ended without its last frame")

    def _started(self, run: Run, prepared: Prepared, placement: Placement) -> AnswerStarted:
        return AnswerStarted(
            request_id=run.call.request_id,
            placement=placement,
            passages=prepared.passages,
            cached_tokens=run.progress.cached_tokens,
            prompt_tokens=len(prepared.token_ids),
            retrieval_degraded=run.degraded,
        )

    def _finished(self, run: Run, frame: FinishedFrame) -> AnswerFinished:
        usage = run.progress.usage(frame.usage)
        run.ended_well(frame.finish_reason, usage)
        return AnswerFinished(
            sequence=frame.sequence,
            finish_reason=frame.finish_reason,
            usage=usage,
            cost=frame.cost,
            timings=run.progress.timings(frame.timings, now_s=self._clock.monotonic()),
        )
