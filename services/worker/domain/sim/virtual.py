"""The simulated engine in virtual time: whoever drives it says what time it is, and waits for nothing."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.worker.domain.mirror import KvChange
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import SimCore
from services.worker.domain.sim.sequence import Phase, Shape, SimSequence
from services.worker.domain.sim.step import Step
from services.worker.domain.sim.timing import step_s


class Admitted(NamedTuple):
    """A sequence whose prefill was scheduled at this time, for the first time."""

    key: str
    at: float
    cached_tokens: int


class Ended(NamedTuple):
    """A sequence that said its last token; `ending` is "stop" or "length"."""

    key: str
    output_tokens: int
    ending: str


class StepDone(NamedTuple):
    """One step that has ended, or many in a row in which each running sequence said a token and nothing else happened.

    Attributes:
        steps: How many. More than one: nothing was admitted, said its first token, ended or changed.
        ended_at: When the last of them ended, and with it what came of it.
        admitted: The sequences that it began with.
        first_tokens: The keys of those that said their first token.
        ended: Those that said their last.
        preempted: The keys of those that lost their blocks.
        changes: What happened to the blocks.
        prefill_tokens: The tokens of prompts that were computed.
        decodes: The sequences that were decoded, in each step.
        output_tokens: The tokens that were said, in all steps.
    """

    steps: int
    ended_at: float
    admitted: tuple[Admitted, ...] = ()
    first_tokens: tuple[str, ...] = ()
    ended: tuple[Ended, ...] = ()
    preempted: tuple[str, ...] = ()
    changes: tuple[KvChange, ...] = ()
    prefill_tokens: int = 0
    decodes: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Flight:
    """A step that is computed, or is to be after the one before it."""

    step: Step
    admitted: tuple[Admitted, ...]
    ends: float


class VirtualEngine:
    """An engine whose steps take as long as the rates say, and no time of the process that simulates it.

    With `ahead` a step is scheduled while the one before it is computed, as vLLM does by default on a GPU.
    """

    def __init__(self, shape: Shape, rates: Rates, *, ahead: bool = False) -> None:
        """Raises ValueError where the pool has no room for the longest context."""
        if shape.kv_blocks * shape.block_size < shape.context_tokens:
            raise ValueError(f"{shape.kv_blocks} blocks are too few for a context of {shape.context_tokens} tokens.")
        self._shape = shape
        self._rates = rates
        self._core = SimCore(shape)
        self._depth = 2 if ahead else 1
        self._flights: deque[_Flight] = deque()
        self._unwanted: list[str] = []
        self._done: list[StepDone] = []
        self._known_calm: int | None = None
        self.steps = 0

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._core.running)

    @property
    def waiting(self) -> int:
        """Sequences in the engine's own queue."""
        return len(self._core.waiting)

    @property
    def kv_usage(self) -> float:
        """The used share of the blocks, 0 to 1."""
        return self._core.pool.usage

    @property
    def next_at(self) -> float | None:
        """When there is something to be told: the end of the step in progress, or of those like it. None: idle."""
        return self._end_of(max(1, self._calm())) if self._flights else None

    def output_tokens(self, key: str) -> int:
        """What a sequence has said so far; 0 for one that is not there."""
        sequence = self._core.find(key)
        return sequence.said if sequence else 0

    def add(self, sequence: SimSequence, *, now: float) -> None:
        """Puts a sequence into the queue. An idle engine starts a step with it at once.

        Raises:
            ValueError: Its prompt leaves no room in the context, or its key is taken.
        """
        if max(sequence.prompt_tokens, len(sequence.tokens)) >= self._shape.context_tokens:
            raise ValueError(f"The prompt of {sequence.key} does not fit into the context.")
        if self._core.find(sequence.key):
            raise ValueError(f"There is a sequence {sequence.key} already.")
        self._catch_up(now)
        self._core.add(sequence)
        self._known_calm = None
        self._fill(now)

    def abort(self, keys: Iterable[str], *, now: float) -> None:
        """Ends sequences, those in the batch with the step in progress. They are not heard of again."""
        self._catch_up(now)
        for key in keys:
            sequence = self._core.find(key)
            if sequence is None:
                continue
            if sequence.phase is Phase.WAITING:
                self._core.abort([key])
            else:
                self._unwanted.append(key)
        self._known_calm = None

    def advance(self, now: float) -> list[StepDone]:
        """Ends the steps that end by now, starts those that follow, and says what came of them."""
        self._catch_up(now)
        done, self._done = self._done, []
        return done

    def _catch_up(self, now: float) -> None:
        while self._flights and self._flights[0].ends <= now:
            if self._calm() > 1:
                self._leap(now)
            else:
                self._finish()

    def _fill(self, now: float) -> None:
        """Schedules as many steps as the device takes."""
        core, flights = self._core, self._flights
        while len(flights) < self._depth and core.has_step:
            step = core.schedule()
            begins = max(now, flights[-1].ends) if flights else now
            flights.append(_Flight(step, self._admitted(step, now), begins + step_s(self._rates, step)))

    def _admitted(self, step: Step, now: float) -> tuple[Admitted, ...]:
        if not step.admitted:
            return ()
        found = [self._core.find(key) for key in step.admitted]
        return tuple(Admitted(one.key, now, one.cached_tokens or 0) for one in found if one and not one.preemptions)

    def _finish(self) -> None:
        flight = self._flights.popleft()
        step = flight.step
        self._core.abort(self._unwanted)
        self._unwanted = []
        self._core.complete(step)
        self._known_calm = None
        if step.scheduled:
            self.steps += 1
        if step.scheduled or step.changes:
            self._done.append(_told(flight))
        self._fill(flight.ends)

    def _calm(self) -> int:
        """The steps, from the one in progress on, after each of which all go on as they are."""
        if self._known_calm is None:
            self._known_calm = self._count_calm()
        return self._known_calm

    def _count_calm(self) -> int:
        core = self._core
        if self._unwanted or len(self._flights) < self._depth:
            return 0
        for flight in self._flights:
            step = flight.step
            if step.prefill_tokens or step.admitted or len(step.saying) != len(core.running):
                return 0
        return core.calm_steps()

    def _end_of(self, number: int) -> float:
        """When the `number`-th step of a calm time ends, the one in progress being the first."""
        flight, further = self._flights[0], number - 1
        if not further:
            return flight.ends
        growth = self._rates.decode_ms_per_context_token * len(self._core.running) / 1000
        return flight.ends + further * step_s(self._rates, flight.step) + growth * further * number / 2

    def _leap(self, now: float) -> None:
        core, flights = self._core, self._flights
        count = bisect_right(range(1, self._calm() + 1), now, key=self._end_of)
        ended_at = self._end_of(count)
        ends = [self._end_of(count + 1 + position) for position in range(len(flights))]
        decodes = len(core.running)
        core.leap(count)
        for flight, end in zip(flights, ends, strict=True):
            flight.ends = end
            flight.step.context_tokens += count * decodes
        self.steps += count
        self._known_calm = self._calm() - count
        self._done.append(StepDone(count, ended_at, decodes=decodes, output_tokens=count * decodes))


def _told(flight: _Flight) -> StepDone:
    step = flight.step
    said = {token.key: token.ending for token in step.tokens}
    speakers = [one for one in step.saying if one.key in said] if said else []
    return StepDone(
        steps=1,
        ended_at=flight.ends,
        admitted=flight.admitted,
        first_tokens=tuple([one.key for one in speakers if one.said == 1]),
        ended=tuple([Ended(one.key, one.said, ending) for one in speakers if (ending := said[one.key]) is not None]),
        preempted=tuple(step.preempted),
        changes=tuple(step.changes),
        prefill_tokens=step.prefill_tokens,
        decodes=step.decodes,
        output_tokens=step.said,
    )
