"""The simulated engine's core, driven step by step."""

from collections import deque

from bench.fidelity.observed import Observed, Record, one_by_one
from bench.fidelity.workload import EOS, MODEL, Arrival
from services.kit.blocks import root_hash
from services.worker.domain.sim.core import Shape, SimCore, SimSequence, Step

MODEL_NAME = "fidelity"
REVISION = "0" * 16


class SimulatedEngine:
    """The core under the harness. With `depth` 2 it schedules a step while the one before it is computed."""

    def __init__(self, shape: Shape, *, depth: int = 1) -> None:
        self.record = Record()
        self._core = SimCore(shape)
        self._depth = depth
        self._computing: deque[Step] = deque()

    @property
    def busy(self) -> bool:
        return self._core.busy if self._depth == 1 else bool(self._core.has_step or self._computing)

    def add(self, arrival: Arrival) -> None:
        sequence = SimSequence(
            key=arrival.key,
            tokens=list(arrival.prompt),
            root=root_hash(model=MODEL_NAME, tokenizer_revision=REVISION, cache_salt=arrival.salt),
            stream=MODEL.start(arrival.prompt, seed=arrival.seed),
            max_tokens=arrival.max_tokens,
            min_tokens=arrival.min_tokens,
            ends=frozenset({EOS}) if arrival.ends else frozenset(),
            priority=arrival.priority,
        )
        self._core.add(sequence)

    def abort(self, key: str) -> None:
        self._core.abort([key])

    def reset(self) -> bool:
        return self._core.pool.reset()

    def step(self) -> None:
        if self._core.has_step:
            self._computing.append(self._core.schedule())
            if len(self._computing) < self._depth:
                return
        self._complete(self._computing.popleft())

    def _complete(self, step: Step) -> None:
        core, record = self._core, self.record
        core.complete(step)
        for token in step.tokens:
            record.cached.setdefault(token.key, token.cached_tokens)
        record.queries += step.queries
        record.hits += step.hits
        record.steps.append(
            Observed(
                scheduled=tuple((sequence.key, count) for sequence, count in step.scheduled),
                admitted=tuple(step.admitted),
                preempted=tuple(step.preempted),
                tokens=tuple((token.key, token.token_id, token.ending) for token in step.tokens),
                events=tuple(one_by_one(step.changes)),
                running=len(core.running),
                waiting=len(core.waiting),
                free_blocks=core.pool.free,
            )
        )
