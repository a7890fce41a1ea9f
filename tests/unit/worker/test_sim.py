"""The simulated engine's core: what a step does, and what never happens."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.blocks import chain_hashes
from services.worker.domain.mirror import Mirror, Stored
from services.worker.domain.sim.core import Shape, SimCore, SimSequence, Step
from services.worker.domain.sim.tokens import SimModel

MODEL = SimModel(alphabet=range(10, 40), eos=1, mean_output_tokens=20)
SHAPE = Shape(block_size=4, kv_blocks=32, context_tokens=64, max_num_seqs=4, max_num_batched_tokens=16)
ROOT = 77


def sequence(key: str, prompt: list[int], *, max_tokens: int = 8, priority: int = 0, root: int = ROOT) -> SimSequence:
    stream = MODEL.start(prompt, seed=0)
    return SimSequence(key=key, tokens=list(prompt), root=root, stream=stream, max_tokens=max_tokens, priority=priority)


@dataclass
class Ran:
    """What came of running a core until it was idle."""

    answers: dict[str, list[int]] = field(default_factory=dict)
    endings: dict[str, str] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    admitted: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    mirror: Mirror = field(default_factory=Mirror)


def run(core: SimCore, ran: Ran | None = None, *, most: int = 2000) -> Ran:
    ran = ran or Ran()
    for _ in range(most):
        if not core.busy:
            return ran
        note(core.step(), ran)
        core.validate()
    raise AssertionError("the core does not come to an end")


def note(step: Step, ran: Ran) -> None:
    ran.steps.append(step)
    ran.admitted += step.admitted
    ran.preempted += step.preempted
    ran.mirror.apply(step.changes)
    for token in step.tokens:
        ran.answers.setdefault(token.key, []).append(token.token_id)
        ran.cached.setdefault(token.key, token.cached_tokens)
        if token.ending:
            assert token.key not in ran.endings
            ran.endings[token.key] = token.ending


def test_a_prompt_is_prefilled_in_chunks_within_the_budget() -> None:
    """40 tokens at 16 a step are three steps, and the first token comes with the third."""
    core = SimCore(SHAPE)
    core.add(sequence("a", list(range(40)), max_tokens=2))
    steps = run(core).steps
    assert [step.prefill_tokens for step in steps] == [16, 16, 8, 0]
    assert [len(step.tokens) for step in steps] == [0, 0, 1, 1]


def test_decodes_go_before_prefills() -> None:
    """While one sequence decodes, the chunks of another have one token less."""
    core = SimCore(SHAPE)
    core.add(sequence("a", [1, 2, 3]))
    first = core.step()
    assert len(first.tokens) == 1
    core.add(sequence("b", list(range(40))))
    step = core.step()
    assert (step.decodes, step.prefill_tokens) == (1, 15)


def test_the_last_token_is_always_computed() -> None:
    """A prompt of whole blocks that is cached entirely still computes its last block."""
    core, prompt = SimCore(SHAPE), list(range(16))
    core.add(sequence("a", prompt))
    ran = run(core)
    core.add(sequence("b", prompt))
    core.add(sequence("c", [*prompt, 5]))
    run(core, ran)
    assert (ran.cached["a"], ran.cached["b"], ran.cached["c"]) == (0, 12, 16)


def test_blocks_are_found_in_the_step_that_fills_them() -> None:
    """As in vLLM: of two equal prompts in one step, the second computes its last block only."""
    core, prompt = SimCore(SHAPE), list(range(8))
    core.add(sequence("a", prompt))
    core.add(sequence("b", prompt))
    step = core.step()
    assert [(one.key, count) for one, count in step.scheduled] == [("a", 8), ("b", 4)]
    first, second = chain_hashes(ROOT, prompt, 4)
    # The copy of the second block is reported too.
    assert step.changes == [Stored((first, second)), Stored((second,))]
    assert (step.queries, step.hits) == (16, 4)


def test_only_the_same_root_shares_blocks() -> None:
    """Another salt, another root, nothing shared."""
    core, prompt = SimCore(SHAPE), list(range(16))
    core.add(sequence("a", prompt))
    ran = run(core)
    core.add(sequence("b", prompt, root=78))
    assert run(core, ran).cached["b"] == 0


def test_events_name_the_chain_of_prompt_and_answer() -> None:
    """All full blocks whose tokens were computed: the answer's last token never was."""
    core, prompt = SimCore(SHAPE), list(range(10))
    core.add(sequence("a", prompt, max_tokens=8))
    ran = run(core)
    computed = (prompt + ran.answers["a"])[:-1]
    expected = chain_hashes(ROOT, computed, 4)
    assert {block for part in ran.mirror.snapshot(99) for block in part.hashes} == set(expected)


def test_the_tail_of_a_prompt_is_evicted_before_its_head() -> None:
    """When room is needed, what is left of an old prompt is still a prefix."""
    core = SimCore(replace(SHAPE, kv_blocks=16))
    old = list(range(100, 140))
    core.add(sequence("old", old, max_tokens=1))
    ran = run(core)
    core.add(sequence("new", list(range(200, 236)), max_tokens=1))
    run(core, ran)
    kept = [block in ran.mirror for block in chain_hashes(ROOT, old, 4)]
    assert kept == sorted(kept, reverse=True)
    assert any(kept)
    assert not all(kept)


def test_the_batch_is_bounded_and_the_rest_waits_by_priority() -> None:
    """Four run; of the waiting ones the lower priority value goes first, even if it came later."""
    core = SimCore(SHAPE)
    for number in range(5):
        core.add(sequence(f"s{number}", [number] * 3, priority=1, max_tokens=30))
    core.add(sequence("urgent", [9] * 3, priority=0, max_tokens=3))
    note(core.step(), ran := Ran())
    assert ran.admitted[0] == "urgent"
    assert len(ran.admitted) == 4
    core.add(sequence("late", [8] * 3, priority=0, max_tokens=3))
    run(core, ran)
    assert ran.admitted.index("late") < ran.admitted.index("s4")


def test_a_running_sequence_without_room_preempts_the_least_important() -> None:
    """The victim is computed again and says the same; nothing is admitted in that step."""
    shape = replace(SHAPE, kv_blocks=16, max_num_batched_tokens=64)
    core, alone = SimCore(shape), SimCore(shape)
    prompts = {"a": [1] * 20, "b": [2] * 20, "c": [3] * 18}
    for priority, (key, prompt) in enumerate(prompts.items()):
        core.add(sequence(key, prompt, max_tokens=24, priority=priority))
    ran = run(core)
    assert "c" in ran.preempted
    assert "a" not in ran.preempted
    assert all(not step.admitted for step in ran.steps if step.preempted)
    for key, prompt in prompts.items():
        alone.add(sequence(key, prompt, max_tokens=24))
        assert run(alone).answers[key] == ran.answers[key]


def test_an_answer_goes_on_from_its_middle() -> None:
    """The model is a function of all tokens before, so another worker can take an answer over."""
    core, prompt = SimCore(SHAPE), [5] * 9
    core.add(sequence("a", prompt, max_tokens=12))
    whole = run(core).answers["a"]
    core.add(sequence("b", prompt + whole[:5], max_tokens=7))
    assert run(core).answers["b"] == whole[5:]


def test_an_answer_ends_at_its_stop_token_and_at_the_context() -> None:
    """`stop` and `length`; min_tokens holds the end-of-sequence token back."""
    core = SimCore(SHAPE)
    natural = replace(sequence("a", [6] * 4, max_tokens=60), ends=frozenset({1}))
    core.add(natural)
    core.add(sequence("b", [6] * 60, max_tokens=60))
    ran = run(core)
    assert ran.endings == {"a": "stop", "b": "length"}
    assert ran.answers["a"][-1] == 1
    assert len(ran.answers["b"]) == 4
    longer = replace(sequence("c", [6] * 4, max_tokens=60), ends=frozenset({1}), min_tokens=len(ran.answers["a"]) + 1)
    core.add(longer)
    assert len(run(core).answers["c"]) > len(ran.answers["a"])


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5), st.integers(1, 60), st.integers(1, 12), st.integers(0, 2)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, st.integers(16, 40), st.integers(1, 5), st.integers(4, 40))
def test_no_sequence_of_events_leaks_a_block(
    operations: list[tuple[object, ...]], kv_blocks: int, max_num_seqs: int, budget: int
) -> None:
    """Counts are right after each step, everything ends, the mirror is the pool, and answers are as if alone."""
    shape = replace(SHAPE, kv_blocks=kv_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    core, ran, added, aborted = SimCore(shape), Ran(), dict[str, SimSequence](), set[str]()
    for operation in operations:
        match operation:
            case ("add", int(seed), int(length), int(max_tokens), int(priority)):
                key = str(len(added))
                prompt = [seed + position % 3 for position in range(length)]
                added[key] = sequence(key, prompt, max_tokens=max_tokens, priority=priority)
                core.add(added[key])
            case ("abort", int(number)):
                core.abort([str(number)])
                aborted.update({str(number)} & set(added) - set(ran.endings))
            case ("step", int(count)):
                for _ in range(count):
                    note(core.step(), ran)
                    core.validate()
        core.validate()
    run(core, ran)
    assert core.pool.usage == 0
    assert set(ran.endings) == set(added) - aborted
    assert set(core.pool._by_hash) == {block for part in ran.mirror.snapshot(999) for block in part.hashes}
    for key in ran.endings:
        one = added[key]
        prompt = one.tokens[: one.prompt_tokens]
        stream = MODEL.start(prompt, seed=0)
        assert ran.answers[key] == [stream.next(may_end=False) for _ in ran.answers[key]]
