"""How busy a remote server is: what it reports of all its callers, and what is counted here of our own."""

import asyncio
from dataclasses import dataclass, field

from downstack.smg import vllm_engine_pb2 as pb

from services.kit.clock import Clock
from services.worker.domain.rates import Decode, Prefill, RateEstimate, Rates
from services.worker.ports import EngineOutput, EngineStats


@dataclass(eq=False)
class Flight:
    """One of our own requests, from here to its last token."""

    prompt_tokens: int
    answers: int
    sent: float
    alone: bool
    first: float | None = None
    last: float = 0.0
    tokens: int = 0


@dataclass
class _Totals:
    chunks: int = 0
    generated: int = 0
    queries: int = 0
    hits: int = 0
    pulse: int = 0


@dataclass
class _Others:
    """What the server runs for others than us, and how full its cache is."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass
class RemoteLoad:
    """Counts. The server's report is half a second old, so of our own requests only our own count is believed."""

    clock: Clock
    declared: Rates
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._rates = RateEstimate(self.declared)
        self._flights: set[Flight] = set()
        self._totals = _Totals()
        self._others = _Others()

    def begin(self, *, prompt_tokens: int, answers: int) -> Flight:
        """A request is sent."""
        alone = not self._flights and not self._others.running and not self._others.waiting
        flight = Flight(prompt_tokens, answers, self.clock.monotonic(), alone=alone)
        self._flights.add(flight)
        self.changed.set()
        return flight

    def note(self, flight: Flight, output: EngineOutput) -> None:
        """The server sent something."""
        now = self.clock.monotonic()
        self._totals.chunks += 1
        self._totals.generated += len(output.token_ids)
        if flight.first is None and output.token_ids:
            cached = output.cached_tokens or 0
            self._totals.queries += flight.prompt_tokens
            self._totals.hits += cached
            if flight.alone:
                # On an empty server the first token comes after the prefill and nothing else.
                ms = (now - flight.sent) * 1000
                self._rates.saw_prefill(Prefill.of(flight.prompt_tokens - cached, start=cached), ms=ms)
            flight.first = now
            flight.tokens = -len(output.token_ids)
        flight.tokens += len(output.token_ids)
        flight.last = now
        self.changed.set()

    def end(self, flight: Flight) -> None:
        """A request has ended, one way or another."""
        steps = flight.tokens / flight.answers
        if flight.first is not None and steps >= 1:
            batch = max(1, self._own_running() + self._others.running)
            self._rates.saw_decode(Decode(batch), ms=(flight.last - flight.first) * 1000 / steps)
        self._flights.discard(flight)
        self.changed.set()

    def beat(self) -> None:
        """The server says that it is well."""
        self._totals.pulse += 1
        self.changed.set()

    def report(self, response: pb.GetLoadsResponse) -> None:
        """What the server reports, all its ranks together."""
        running = sum(entry.num_running_reqs for entry in response.loads)
        waiting = sum(entry.num_waiting_reqs for entry in response.loads)
        usage = max((entry.token_usage for entry in response.loads), default=0.0)
        own = sum(flight.answers for flight in self._flights)
        others = max(0, running + waiting - own)
        self._others = _Others(running=min(running, others), waiting=max(0, others - running), kv_usage=usage)
        self.changed.set()

    def stats(self) -> EngineStats:
        totals, running = self._totals, self._own_running()
        waiting = sum(flight.answers for flight in self._flights) - running
        return EngineStats(
            running=running + self._others.running,
            waiting=waiting + self._others.waiting,
            unfinished=len(self._flights),
            kv_usage=self._others.kv_usage,
            steps=totals.chunks,
            generated_tokens=totals.generated,
            prefix_queries=totals.queries,
            prefix_hits=totals.hits,
            pulse=totals.pulse,
        )

    def rates(self) -> Rates:
        return self._rates.current()

    def _own_running(self) -> int:
        return sum(flight.answers for flight in self._flights if flight.first is not None)
