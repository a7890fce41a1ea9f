"""The operations of the public API."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.router.app.accounting import Accounting
from services.router.app.call import Call, Run
from services.router.app.generation import AnswerFrame, AnswerStarted, Generation
from services.router.app.preparation import Counted, Preparation, Prepared
from services.router.app.slots import Slots
from services.router.domain.caller_events import validate_events
from services.router.domain.explanation import Attempt, join
from services.router.domain.facts import Admitted, CallerEvent, Record, Subject
from services.router.domain.models import ServedModel
from services.router.domain.outcome import FinishReason
from services.router.domain.request import GenerationSpec
from services.router.ports import AuditPort, LedgerPort, MeterPort


@dataclass(frozen=True, slots=True)
class Reserved:
    """A placement for the caller to use itself."""

    started: AnswerStarted
    token_ids: Sequence[int]


class Router:
    """What InferenceService does, free of gRPC."""

    def __init__(
        self,
        *,
        preparation: Preparation,
        generation: Generation,
        accounting: Accounting,
        audit: AuditPort,
        ledger: LedgerPort,
        meter: MeterPort,
        slots: Slots,
        clock: Clock,
    ) -> None:
        self._preparation = preparation
        self._generation = generation
        self._accounting = accounting
        self._audit = audit
        self._ledger = ledger
        self._meter = meter
        self._slots = slots
        self._clock = clock

    async def generate(self, call: Call, spec: GenerationSpec) -> AsyncGenerator[AnswerFrame, None]:
        """The frames of one answer: started, tokens, finished. Closing the iterator cancels the work."""
        async with self._request(call, spec) as run:
            prepared = await self._admit(run)
            async with aclosing(self._generation.stream(run, prepared)) as frames:
                async for frame in frames:
                    yield frame

    async def reserve(self, call: Call, spec: GenerationSpec) -> Reserved:
        """Place a request and leave the stream to the caller. The lease expires by itself if it is not used."""
        async with self._request(call, spec) as run:
            prepared = await self._admit(run)
            placement = await self._generation.place(run, prepared)
            run.handed_over = True
            run.ended_well(FinishReason.UNSPECIFIED, run.progress.delivered())
        started = AnswerStarted(
            request_id=call.request_id,
            placement=placement,
            passages=prepared.passages,
            cached_tokens=None,
            prompt_tokens=len(prepared.token_ids),
            retrieval_degraded=run.degraded,
        )
        return Reserved(started=started, token_ids=prepared.token_ids)

    async def count_tokens(self, spec: GenerationSpec) -> Counted:
        """The length of a prompt."""
        with self._slots.take():
            return await self._preparation.count(spec)

    def list_models(self) -> list[ServedModel]:
        """The models that a request can name now."""
        return self._preparation.models()

    async def explain(self, call: Call, request_id: str) -> list[Attempt]:
        """What is known of one of the caller's own requests. REQUEST_NOT_FOUND."""
        if not request_id:
            raise DownstackError(Reason.PARAM_OUT_OF_RANGE, "request_id is required")
        timeout_s = call.remaining_s(self._clock.monotonic())
        placed, billed = await self._ledger.describe(call.identity, request_id=request_id, timeout_s=timeout_s)
        return join(request_id, placed, billed)

    async def record_events(self, call: Call, events: Sequence[CallerEvent]) -> int:
        """Append the caller's own events; they are durable when this returns."""
        _require_tenant(call)
        validate_events(events)
        self._audit.check_open()
        await self._audit.record(*(Record(_subject_of(call, event), event) for event in events))
        return len(events)

    async def _admit(self, run: Run) -> Prepared:
        """Refuse, or write down that the request was accepted."""
        _require_tenant(run.call)
        self._audit.check_open()
        prepared = await self._preparation.prepare(run)
        admitted = Admitted(
            model=run.spec.model,
            prompt_tokens=len(prepared.token_ids),
            max_output_tokens=prepared.order.max_output_tokens,
            prompt_hash=prepared.prompt_hash,
            method=run.call.method,
        )
        await self._audit.record(Record(run.call.subject(run.spec.conversation_id), admitted))
        return prepared

    @asynccontextmanager
    async def _request(self, call: Call, spec: GenerationSpec) -> AsyncIterator[Run]:
        """The life of one request: whatever ends it, its record is written and its lease released."""
        run = Run.of(call, spec)
        self._meter.stream_opened()
        try:
            with self._slots.take():
                async with self._recorded(run):
                    yield run
        except DownstackError as error:
            # A request that was placed has its end on record already.
            if not run.attempt:
                run.failed(error)
                await self._accounting.refused(run, error)
            raise
        finally:
            self._meter.stream_closed()
            self._meter.request_ended(run.end(self._clock.monotonic()))

    @asynccontextmanager
    async def _recorded(self, run: Run) -> AsyncIterator[None]:
        try:
            yield
        except DownstackError as error:
            run.failed(error)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            run.abandoned(self._clock.monotonic())
            raise
        finally:
            if run.attempt and not run.handed_over:
                await self._accounting.closed(run)


def _require_tenant(call: Call) -> None:
    if not call.identity.tenant_id:
        raise DownstackError(
            Reason.ACTION_NOT_ALLOWED, "the operator's key belongs to no tenant: create a tenant and a key of its own"
        )


def _subject_of(call: Call, event: CallerEvent) -> Subject:
    return replace(call.subject(event.conversation_id), request_id=event.request_id)
