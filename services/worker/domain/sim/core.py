"""The simulated engine's scheduler: one function that makes one step.

Follows vLLM's scheduler: running requests first, then waiting ones, within one budget of tokens a step that decodes and
chunks of prefills share; admission only with room for the whole prompt; preemption only where a running request finds
no block, of the least important one, by recomputation; no admission in a step that preempted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.kit.blocks import next_hash
from services.worker.domain.mirror import KvChange
from services.worker.domain.sim.pool import BlockPool
from services.worker.domain.sim.tokens import TokenStream


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an engine."""

    block_size: int
    kv_blocks: int
    context_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(eq=False, slots=True)
class SimSequence:
    """One answer that is being generated.

    Attributes:
        tokens: The prompt, then the answer.
        root: The hash before its first block.
        stream: Says the tokens.
        ends: Tokens that end it.
        arrival: Ranks sequences of one priority.
    """

    key: str
    tokens: list[int]
    root: int
    stream: TokenStream
    max_tokens: int
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()
    priority: int = 0
    arrival: int = 0
    prompt_tokens: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    registered: int = 0
    cached_tokens: int | None = None
    preemptions: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """The lowest goes first."""
        return (self.priority, self.arrival)


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one sequence; `ending` is "stop" or "length" with its last one."""

    key: str
    token_id: int
    ending: str | None
    cached_tokens: int


@dataclass(slots=True)
class Step:
    """What one step did.

    Attributes:
        scheduled: The sequences that computed something, in order, and how many tokens each.
        queries: The tokens that were looked up in the prefix cache; sequences count once, however often preempted.
        hits: Those of them that were found.
    """

    scheduled: list[tuple[SimSequence, int]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    changes: list[KvChange] = field(default_factory=list)
    prefill_tokens: int = 0
    decodes: int = 0
    queries: int = 0
    hits: int = 0


class SimCore:
    """The engine's state. `add`, `abort` and `step` in any order."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pool = BlockPool(shape.kv_blocks)
        self.running: list[SimSequence] = []
        self.waiting: list[SimSequence] = []
        self._arrivals = 0

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.running or self.waiting)

    def add(self, sequence: SimSequence) -> None:
        """Puts a sequence into the queue. Its prompt must fit into the context."""
        self._arrivals += 1
        sequence.arrival = self._arrivals
        sequence.prompt_tokens = len(sequence.tokens)
        self._extend_hashes(sequence)
        self.waiting.append(sequence)

    def abort(self, keys: Iterable[str]) -> None:
        """Ends sequences at once; unknown ones are ignored."""
        wanted = set(keys)
        for sequence in [one for one in self.running if one.key in wanted]:
            self._release(sequence)
        self.running = [one for one in self.running if one.key not in wanted]
        self.waiting = [one for one in self.waiting if one.key not in wanted]

    def step(self) -> Step:
        """Schedules and computes one step."""
        done = Step()
        budget = self._schedule_running(self.shape.max_num_batched_tokens, done)
        if not done.preempted:
            self._schedule_waiting(budget, done)
        for sequence, count in done.scheduled:
            self._compute(sequence, count, done)
        done.changes = self.pool.drain_changes()
        return done

    def _schedule_running(self, budget: int, done: Step) -> int:
        position = 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            count = min(len(sequence.tokens) - sequence.computed, budget)
            victims = self._make_room(sequence, count, done)
            if victims:
                budget += sum(given for one, given in done.scheduled if one in victims)
                done.scheduled = [entry for entry in done.scheduled if entry[0] not in victims]
                if sequence in victims:
                    break
                position = self.running.index(sequence)
            self._schedule(sequence, count, done)
            budget -= count
            position += 1
        return budget

    def _make_room(self, sequence: SimSequence, count: int, done: Step) -> list[SimSequence]:
        """Preempts until the sequence's next tokens have blocks; the last victim may be itself."""
        victims = []
        while self._missing(sequence, count) > self.pool.free:
            victim = max(self.running, key=lambda one: one.rank)
            self._preempt(victim, done)
            victims.append(victim)
            if victim is sequence:
                break
        return victims

    def _preempt(self, victim: SimSequence, done: Step) -> None:
        self.running.remove(victim)
        self._release(victim)
        victim.computed = 0
        victim.preemptions += 1
        self.waiting.append(victim)
        done.preempted.append(victim.key)

    def _schedule_waiting(self, budget: int, done: Step) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.shape.max_num_seqs:
            sequence = min(self.waiting, key=lambda one: one.rank)
            # The last token is always computed: its output is the first token of the answer.
            hits = self.pool.cached_prefix(sequence.hashes[: (len(sequence.tokens) - 1) // self.shape.block_size])
            whole = -(-len(sequence.tokens) // self.shape.block_size)
            if whole - len(hits) + self.pool.count_free(hits) > self.pool.free:
                return
            self._admit(sequence, hits, done)
            count = min(len(sequence.tokens) - sequence.computed, budget)
            self._schedule(sequence, count, done)
            budget -= count

    def _admit(self, sequence: SimSequence, hits: list[int], done: Step) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self.pool.touch(hits)
        sequence.blocks = hits
        sequence.registered = len(hits)
        sequence.computed = len(hits) * self.shape.block_size
        done.admitted.append(sequence.key)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            done.queries += len(sequence.tokens)
            done.hits += sequence.computed

    def _missing(self, sequence: SimSequence, count: int) -> int:
        return -(-(sequence.computed + count) // self.shape.block_size) - len(sequence.blocks)

    def _schedule(self, sequence: SimSequence, count: int, done: Step) -> None:
        """Gives the sequence's next tokens their blocks.

        As in vLLM the blocks that they fill can be found at once, by the next sequence of the same step too, before
        they are computed. They stay so even where the sequence is preempted later in the step.
        """
        sequence.blocks += self.pool.take(max(0, self._missing(sequence, count)))
        self._extend_hashes(sequence)
        full = (sequence.computed + count) // self.shape.block_size
        if full > sequence.registered:
            filled = slice(sequence.registered, full)
            self.pool.register(sequence.blocks[filled], sequence.hashes[filled])
            sequence.registered = full
        done.scheduled.append((sequence, count))

    def _extend_hashes(self, sequence: SimSequence) -> None:
        size, hashes = self.shape.block_size, sequence.hashes
        for start in range(len(hashes) * size, len(sequence.tokens) // size * size, size):
            parent = hashes[-1] if hashes else sequence.root
            hashes.append(next_hash(parent, sequence.tokens[start : start + size]))

    def _compute(self, sequence: SimSequence, count: int, done: Step) -> None:
        decoding = count == 1 and sequence.computed >= sequence.prompt_tokens
        done.decodes += decoding
        done.prefill_tokens += 0 if decoding else count
        sequence.computed += count
        if sequence.computed < len(sequence.tokens):
            return
        said = len(sequence.tokens) - sequence.prompt_tokens
        token_id = sequence.stream.next(may_end=bool(sequence.ends) and said >= sequence.min_tokens)
        sequence.tokens.append(token_id)
        ending = self._ending(sequence, token_id, said + 1)
        if ending:
            self.running.remove(sequence)
            self._release(sequence)
        done.tokens.append(Token(sequence.key, token_id, ending, sequence.cached_tokens or 0))

    def _ending(self, sequence: SimSequence, token_id: int, said: int) -> str | None:
        if token_id in sequence.ends and said > sequence.min_tokens:
            return "stop"
        if said >= sequence.max_tokens or len(sequence.tokens) >= self.shape.context_tokens:
            return "length"
        return None

    def _release(self, sequence: SimSequence) -> None:
        self.pool.release(sequence.blocks[::-1])
        sequence.blocks = []
        sequence.registered = 0

    def validate(self) -> None:
        """Asserts the invariants of the whole state. For tests."""
        self.pool.validate([sequence.blocks for sequence in self.running])
        assert len(self.running) <= self.shape.max_num_seqs
        assert all(not sequence.blocks for sequence in self.waiting)
        for sequence in self.running:
            assert sequence.computed <= len(sequence.tokens)
            assert len(sequence.blocks) * self.shape.block_size >= sequence.computed
