"""The simulated engine in virtual time: exact times, and many steps at once as if they were made one by one."""

import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.worker.domain.mirror import KvChange, Removed, Stored
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape, SimCore, SimSequence
from services.worker.domain.sim.tokens import SimModel
from services.worker.domain.sim.virtual import StepDone, VirtualEngine

SHAPE = Shape(block_size=4, kv_blocks=32, context_tokens=64, max_num_seqs=4, max_num_batched_tokens=16)
RATES = Rates(
    prefill_base_ms=5.0,
    prefill_ms_per_token=1.0,
    decode_base_ms=10.0,
    decode_ms_per_request=2.0,
    prefill_ms_per_pair=0.01,
    decode_ms_per_context_token=0.1,
)
PLAIN = Rates(5.0, 1.0, 10.0, 2.0)


def counted(
    key: str, *, prompt: int = 8, output: int = 6, priority: int = 0, of: int = 0, block_size: int = 4
) -> SimSequence:
    """A sequence whose prompt is one of a few, by hashes."""
    hashes = tuple(of * 1000 + block for block in range(prompt // block_size))
    return SimSequence.of_hashes(key, prompt_tokens=prompt, hashes=hashes, output_tokens=output, priority=priority)


@dataclass
class Ran:
    """Everything that an engine told."""

    steps: list[StepDone] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    ended: dict[str, tuple[float, int]] = field(default_factory=dict)
    admitted: dict[str, tuple[float, int]] = field(default_factory=dict)
    changes: list[tuple[float, KvChange]] = field(default_factory=list)

    def take(self, steps: list[StepDone]) -> None:
        for step in steps:
            self.steps.append(step)
            assert not self.first.keys() & set(step.first_tokens)
            self.first |= dict.fromkeys(step.first_tokens, step.ended_at)
            self.ended |= {one.key: (step.ended_at, one.output_tokens) for one in step.ended}
            self.admitted |= {one.key: (one.at, one.cached_tokens) for one in step.admitted}
            self.changes += [(step.ended_at, change) for change in step.changes]

    def totals(self) -> tuple[int, int, int]:
        return (
            sum(step.steps for step in self.steps),
            sum(step.output_tokens for step in self.steps),
            sum(step.prefill_tokens for step in self.steps),
        )


def finish(engine: VirtualEngine, ran: Ran | None = None) -> Ran:
    ran = ran or Ran()
    while (at := engine.next_at) is not None:
        ran.take(engine.advance(at))
    return ran


def test_the_times_are_those_of_the_rates() -> None:
    """A prefill of 8 tokens, then five decodes; nothing is left then."""
    engine = VirtualEngine(SHAPE, PLAIN)
    assert engine.next_at is None
    engine.add(counted("a"), now=100.0)
    assert engine.next_at == pytest.approx(100.013)
    assert engine.running == 1
    ran = finish(engine)
    assert ran.admitted == {"a": (100.0, 0)}
    assert ran.first["a"] == pytest.approx(100.013)
    assert ran.ended["a"] == pytest.approx((100.063, 6))
    assert (engine.running, engine.waiting, engine.kv_usage, engine.steps) == (0, 0, 0, 6)


def test_context_costs_in_prefill_and_in_decode() -> None:
    """Chunks attend to what is before them, decodes to all that their sequence holds."""
    engine = VirtualEngine(SHAPE, RATES)
    engine.add(counted("a", prompt=24, output=2), now=0.0)
    ran = finish(engine)
    chunks = [5 + 16 + 0.01 * 16 * 8, 5 + 8 + 0.01 * 8 * 20]
    assert ran.first["a"] == pytest.approx(sum(chunks) / 1000)
    assert ran.ended["a"][0] == pytest.approx((sum(chunks) + 10 + 0.1 * 25) / 1000)


def test_a_step_that_prefills_and_decodes_has_one_fixed_time() -> None:
    """The weights are read once."""
    engine = VirtualEngine(SHAPE, PLAIN)
    engine.add(counted("a"), now=0.0)
    engine.add(counted("b", of=1), now=0.001)
    ran = finish(engine)
    assert ran.first["b"] == pytest.approx(0.013 + (10 + 8) / 1000)
    assert ran.admitted["b"] == (ran.first["a"], 0)


def test_prefixes_are_found_and_answers_are_nobody_elses() -> None:
    """The same prompt again is cached but for its last block; its answer's blocks have names of their own."""
    engine = VirtualEngine(SHAPE, PLAIN)
    engine.add(counted("a"), now=0.0)
    ran = finish(engine)
    engine.add(counted("b"), now=1.0)
    finish(engine, ran)
    assert ran.admitted["b"] == (1.0, 4)
    stored = [block for _, change in ran.changes if isinstance(change, Stored) for block in change.hashes]
    assert stored[:2] == [0, 1]
    assert len(set(stored)) == len(stored) - 1  # the last block of the prompt is stored twice


def test_an_abort_in_the_batch_takes_effect_with_the_step() -> None:
    """It is not heard of again; one that waits is gone at once."""
    engine = VirtualEngine(replace(SHAPE, max_num_seqs=1), PLAIN)
    engine.add(counted("a"), now=0.0)
    engine.add(counted("b", of=1), now=0.0)
    assert (engine.running, engine.waiting) == (1, 1)
    engine.abort(["b", "unknown"], now=0.001)
    assert engine.waiting == 0
    engine.abort(["a"], now=0.001)
    assert engine.running == 1
    ran = finish(engine)
    assert (ran.first, ran.ended) == ({}, {})
    assert (engine.running, engine.kv_usage, engine.steps) == (0, 0, 1)


def test_calm_times_are_one_step_done() -> None:
    """Blocks of 16: a long answer is told in a few parts, and can be asked about in the middle."""
    shape = Shape(block_size=16, kv_blocks=64, context_tokens=512, max_num_seqs=4, max_num_batched_tokens=512)
    engine = VirtualEngine(shape, PLAIN)
    engine.add(counted("a", prompt=16, output=161, block_size=16), now=0.0)
    ran = Ran()
    ran.take(engine.advance(0.021 + 0.0505))
    assert engine.output_tokens("a") == 6
    finish(engine, ran)
    assert ran.totals() == (161, 161, 16)
    assert len(ran.steps) < 161 / 4
    assert ran.ended["a"] == pytest.approx((0.021 + 1.6, 161))


def test_what_cannot_fit_is_refused() -> None:
    """A pool smaller than the context, a prompt as long as it, a key that is taken."""
    with pytest.raises(ValueError, match="blocks are too few"):
        VirtualEngine(replace(SHAPE, kv_blocks=15), PLAIN)
    engine = VirtualEngine(SHAPE, PLAIN)
    with pytest.raises(ValueError, match="does not fit"):
        engine.add(counted("a", prompt=64), now=0.0)
    engine.add(counted("a"), now=0.0)
    with pytest.raises(ValueError, match="already"):
        engine.add(counted("a"), now=0.0)


def test_sequences_with_content_run_too() -> None:
    """Step by step, as the real-time engine runs them."""
    engine = VirtualEngine(SHAPE, PLAIN)
    model = SimModel(alphabet=range(10, 40), eos=1, mean_output_tokens=20)
    stream = model.start([1, 2, 3], seed=0)
    engine.add(SimSequence(key="a", tokens=[1, 2, 3], root=7, stream=stream, max_tokens=5), now=0.0)
    assert finish(engine).ended["a"][1] == 5


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2)),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("wait"), st.floats(0.0, 0.4)),
        st.tuples(st.just("look"), st.floats(0.0, 0.1)),
    ),
    max_size=30,
)


def play(operations: list[tuple[object, ...]], shape: Shape, *, ahead: bool) -> tuple[Ran, VirtualEngine]:
    """Runs a script. Only `look` asks the engine for what came of it."""
    engine, ran, now, numbers = VirtualEngine(shape, RATES, ahead=ahead), Ran(), 0.0, itertools.count()
    for operation in operations:
        match operation:
            case ("add", int(of), int(prompt), int(output), int(priority)):
                one = counted(str(next(numbers)), prompt=prompt, output=output, priority=priority, of=of)
                engine.add(one, now=now)
            case ("abort", int(number)):
                engine.abort([str(number)], now=now)
            case ("wait", float(seconds)):
                now += seconds
            case ("look", float(seconds)):
                now += seconds
                ran.take(engine.advance(now))
        engine._core.validate()
    return finish(engine, ran), engine


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.integers(16, 40), st.integers(1, 5), st.integers(5, 40), st.sampled_from(["ahead", "one by one"]))
def test_many_steps_at_once_are_as_one_by_one(
    operations: list[tuple[object, ...]], kv_blocks: int, max_num_seqs: int, budget: int, mode: str
) -> None:
    """The same admissions, first tokens, ends, block changes and counts, at the same times."""
    shape = replace(SHAPE, kv_blocks=kv_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    leaping, engine = play(operations, shape, ahead=mode == "ahead")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimCore, "calm_steps", lambda _core: 0)
        stepping, single = play(operations, shape, ahead=mode == "ahead")
    assert all(step.steps == 1 for step in stepping.steps)
    assert leaping.totals() == stepping.totals()
    assert engine.steps == single.steps
    assert leaping.first == pytest.approx(stepping.first, abs=1e-9)
    for ours, theirs in ((leaping.ended, stepping.ended), (leaping.admitted, stepping.admitted)):
        assert {key: count for key, (_, count) in ours.items()} == {key: count for key, (_, count) in theirs.items()}
        assert [at for at, _ in ours.values()] == pytest.approx([at for at, _ in theirs.values()], abs=1e-9)
    assert [change for _, change in leaping.changes] == [change for _, change in stepping.changes]
    assert [at for at, _ in leaping.changes] == pytest.approx([at for at, _ in stepping.changes], abs=1e-9)
    assert engine.kv_usage == 0
    held = 0
    for _, change in leaping.changes:
        held += len(change.hashes) if isinstance(change, Stored) else 0
        held -= len(change.hashes) if isinstance(change, Removed) else 0
    assert 0 <= held <= kv_blocks
