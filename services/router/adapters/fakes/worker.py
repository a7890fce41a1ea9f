"""A worker that says what it was told to say, fails where it was told to fail, and notices when nobody listens."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from downstack.types.v1 import stream_pb2 as stream_pb
from downstack.types.v1 import usage_pb2 as usage_pb
from downstack.worker.v1 import worker_pb2 as worker_pb
from downstack.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.identity import Access, AssertionAuthenticator
from services.kit.pricing import cost_of
from services.kit.server import Binding, ServiceParts
from services.kit.tickets import verify_ticket

_WORKER = "downstack.worker.v1.WorkerService"


@dataclass
class FakeWorker(WorkerServiceServicer):
    """The script and the memory of one fake worker.

    Attributes:
        secret: Checks the tickets.
        words: One delta each.
        cached_tokens: What the engine found in its cache.
        failure: Raised instead of the word with the number `failure_at`; 0 is before the first.
        silent_end: The stream just ends after the words, without its last frame.
        gate: The word with the number `gate_at` waits for it.
        reached_gate: Set when a stream waits there.
        cancelled: Set when a stream was cancelled.
        requests: The Generate requests, in order.
    """

    secret: bytes
    words: tuple[str, ...] = ("one ", "two ", "three")
    cached_tokens: int = 4
    failure: DownstackError | None = None
    failure_at: int = 0
    silent_end: bool = False
    gate: asyncio.Event | None = None
    gate_at: int = 1
    reached_gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[worker_pb.GenerateRequest] = field(default_factory=list)

    def parts(self) -> ServiceParts:
        """The service, for the router and for nobody else."""
        return ServiceParts(
            bindings=(Binding(add_WorkerServiceServicer_to_server, self, _WORKER),),
            access={f"/{_WORKER}/Generate": Access.service("router")},
            authenticator=AssertionAuthenticator(self.secret, SystemClock()),
        )

    async def Generate(  # noqa: N802
        self, request: worker_pb.GenerateRequest, _context: Any
    ) -> AsyncIterator[worker_pb.GenerateResponse]:
        grant = verify_ticket(request.ticket, secret=self.secret)
        self.requests.append(request)
        started = stream_pb.Started(
            lease_id=grant.lease_id, worker_id=grant.worker_id, prompt_tokens=grant.prompt_tokens
        )
        yield worker_pb.GenerateResponse(started=started, sequence=0)
        try:
            for number, word in enumerate(self.words):
                await self._before(number)
                yield worker_pb.GenerateResponse(delta=self._delta(number, word), sequence=number + 1)
            await self._before(len(self.words))
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        if not self.silent_end:
            usage = usage_pb.TokenUsage(
                input_total=grant.prompt_tokens, input_cached=self.cached_tokens, output_total=len(self.words)
            )
            finished = stream_pb.Finished(
                finish_reason=usage_pb.FINISH_REASON_STOP,
                usage=usage,
                cost=cost_of(grant.price, usage),
                timings=usage_pb.Timings(engine_queue_ms=0.5, prefill_ms=2.0, ttft_ms=3.0),
            )
            yield worker_pb.GenerateResponse(finished=finished, sequence=len(self.words) + 1)

    async def _before(self, number: int) -> None:
        if self.gate is not None and number == self.gate_at:
            self.reached_gate.set()
            await self.gate.wait()
        if self.failure is not None and number == self.failure_at:
            raise self.failure

    def _delta(self, number: int, word: str) -> stream_pb.Delta:
        delta = stream_pb.Delta(text=word, token_ids=[number], output_tokens=number + 1)
        if number == 0:
            delta.cached_tokens = self.cached_tokens
        return delta
