"""The simulated engine's core, driven step by step."""

from bench.fidelity.observed import Observed, Record
from bench.fidelity.workload import EOS, MODEL, Arrival
from services.kit.blocks import root_hash
from services.worker.domain.sim.core import Shape, SimCore, SimSequence

MODEL_NAME = "fidelity"
REVISION = "0" * 16


class SimulatedEngine:
    """The core under the harness."""

    def __init__(self, shape: Shape) -> None:
        self.record = Record()
        self._core = SimCore(shape)

    @property
    def busy(self) -> bool:
        return self._core.busy

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
        core, record = self._core, self.record
        step = core.step()
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
                events=tuple(step.changes),
                running=len(core.running),
                waiting=len(core.waiting),
                free_blocks=core.pool.free,
            )
        )
