"""The simulated engine's scheduler: what one step computes, and what comes of it.

Follows vLLM's scheduler: running requests first, then waiting ones, within one budget of tokens a step that decodes and
chunks of prefills share; admission only with room for the whole prompt; preemption only where a running request finds
no block, of the least important one, by recomputation; no admission in a step that preempted.

A step may be scheduled while the one before it is computed, as vLLM does by default on a GPU: its requests then have
pending tokens, which count as computed before they are known.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.worker.domain.sim.pool import BlockPool
from services.worker.domain.sim.queue import WaitingQueue
from services.worker.domain.sim.sequence import Phase, Shape, SimSequence
from services.worker.domain.sim.step import Step, Token

__all__ = ["Shape", "SimCore", "SimSequence", "Step", "Token"]


@dataclass(frozen=True, slots=True)
class _Blocked:
    """The first sequence that waits, when it found no room.

    Attributes:
        releases: How often blocks had been released then.
        missing: The hash of its first block that was not cached, if it has one.
    """

    sequence: SimSequence
    releases: int
    missing: list[int]


class SimCore:
    """The engine's state. `add`, `abort`, `schedule` in any order; steps are completed in the order of scheduling."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.pool = BlockPool(shape.kv_blocks)
        self.running: list[SimSequence] = []
        self.waiting: WaitingQueue[SimSequence] = WaitingQueue()
        self._sequences: dict[str, SimSequence] = {}
        self._arrivals = 0
        self._to_tell = False
        self._blocked: _Blocked | None = None

    @property
    def busy(self) -> bool:
        """Whether a sequence has not ended."""
        return bool(self._sequences)

    @property
    def has_step(self) -> bool:
        """Whether there is a step to schedule: also one, maybe empty, that tells the device of the sequences' ends."""
        return self._to_tell or bool(self._sequences)

    def add(self, sequence: SimSequence) -> None:
        """Puts a sequence into the queue. Its prompt must fit into the context."""
        self._arrivals += 1
        sequence.begin(self._arrivals, context_tokens=self.shape.context_tokens)
        sequence.extend_hashes(sequence.known // self.shape.block_size, self.shape.block_size)
        self._sequences[sequence.key] = sequence
        self.waiting.push(sequence)

    def find(self, key: str) -> SimSequence | None:
        """The sequence of this key, if it has not ended."""
        return self._sequences.get(key)

    def abort(self, keys: Iterable[str]) -> None:
        """Ends sequences at once; unknown ones are ignored."""
        found = {key: self._sequences[key] for key in keys if key in self._sequences}
        for sequence in [one for one in self.running if one.key in found] if found else ():
            self._release(sequence)
        for sequence in found.values():
            self._end(sequence)

    def step(self) -> Step:
        """Schedules a step and completes it."""
        step = self.schedule()
        self.complete(step)
        return step

    def schedule(self) -> Step:
        """Decides on the next step."""
        step = Step()
        budget = self._schedule_running(self.shape.max_num_batched_tokens, step)
        if not step.preempted:
            self._schedule_waiting(budget, step)
        for sequence, count in step.scheduled:
            self._start(sequence, count, step)
        self._to_tell = False
        return step

    def calm_steps(self) -> int:
        """How many steps can follow in which each running sequence says a token and nothing else happens.

        Only where the steps in flight are of that kind; only for sequences without content. No block is taken or
        filled in these steps, nothing ends, and nobody is admitted.
        """
        shape = self.shape
        if not 0 < len(self.running) <= shape.max_num_batched_tokens or self.pool.changed or not self._holds_back():
            return 0
        most = shape.context_tokens
        for one in self.running:
            if one.stream is not None:
                return 0
            most = min(
                most,
                one.max_tokens - one.said - one.pending,
                shape.context_tokens - 1 - one.computed,
                len(one.blocks) * shape.block_size - one.computed,
                (one.registered + 1) * shape.block_size - 1 - one.known,
            )
        return max(0, most)

    def leap(self, steps: int) -> None:
        """Makes that many steps at once, at most `calm_steps`."""
        for one in self.running:
            one.known += steps
            one.computed += steps

    def complete(self, step: Step) -> None:
        """The step is computed: its sequences say their tokens, and some end."""
        for sequence, _ in step.scheduled:
            sequence.in_flight -= 1
        for sequence in step.saying:
            if sequence.stream is None and sequence.prompt_tokens < sequence.known < sequence.quiet:
                sequence.known += 1
                sequence.pending -= 1
                step.said += 1
            elif sequence.phase is not Phase.GONE:
                self._hear(sequence, step)
        step.changes = self.pool.drain_changes()

    def _schedule_running(self, budget: int, step: Step) -> int:
        position = 0
        while position < len(self.running) and budget > 0:
            sequence = self.running[position]
            if sequence.computed < sequence.quiet:
                step.scheduled.append((sequence, 1))
                budget -= 1
                position += 1
                continue
            count = self._next_tokens(sequence, budget)
            if not count:
                position += 1
                continue
            victims = self._make_room(sequence, count, step)
            if victims:
                budget += sum(given for one, given in step.scheduled if one in victims)
                step.scheduled = [entry for entry in step.scheduled if entry[0] not in victims]
                if sequence in victims:
                    break
                position = self.running.index(sequence)
            self._schedule(sequence, count, step)
            budget -= count
            position += 1
        return budget

    def _next_tokens(self, sequence: SimSequence, budget: int) -> int:
        """How many tokens of a running sequence the next step computes; none where it surely ends without that."""
        computed, pending = sequence.computed, sequence.pending
        if pending and computed + 2 - pending >= sequence.prompt_tokens + sequence.max_tokens:
            return 0
        return min(sequence.known + pending - computed, budget, self.shape.context_tokens - computed - 1)

    def _make_room(self, sequence: SimSequence, count: int, step: Step) -> list[SimSequence]:
        """Preempts until the sequence's next tokens have blocks; the last victim may be itself."""
        victims = []
        while self._missing(sequence, count) > self.pool.free:
            victim = max(self.running, key=lambda one: one.rank)
            self._preempt(victim, step)
            victims.append(victim)
            if victim is sequence:
                break
        return victims

    def _preempt(self, victim: SimSequence, step: Step) -> None:
        self.running.remove(victim)
        self._release(victim)
        victim.computed = victim.pending = victim.quiet = 0
        victim.preemptions += 1
        victim.phase = Phase.WAITING
        self.waiting.push(victim)
        step.preempted.append(victim.key)

    def _schedule_waiting(self, budget: int, step: Step) -> None:
        skipped = []
        while budget > 0 and len(self.running) < self.shape.max_num_seqs:
            sequence = self.waiting.first()
            if sequence is None:
                break
            if sequence.in_flight:
                # It was preempted, and what the device still computes for it would come twice.
                self.waiting.remove(sequence)
                skipped.append(sequence)
                continue
            if self._is_blocked(sequence):
                break
            # The last token is always computed: its output is the first token of the answer.
            findable = sequence.hashes[: (sequence.known - 1) // self.shape.block_size]
            hits = self.pool.cached_prefix(findable)
            whole = -(-sequence.known // self.shape.block_size)
            if whole - len(hits) + self.pool.count_free(hits) > self.pool.free:
                self._blocked = _Blocked(sequence, self.pool.releases, findable[len(hits) : len(hits) + 1])
                break
            self._admit(sequence, hits, step)
            count = min(sequence.known - sequence.computed, budget)
            self._schedule(sequence, count, step)
            budget -= count
        for sequence in skipped:
            self.waiting.push(sequence)

    def _is_blocked(self, sequence: SimSequence) -> bool:
        """Whether it had no room at the last look, and nothing has happened since that could make some."""
        blocked = self._blocked
        return (
            blocked is not None
            and blocked.sequence is sequence
            and blocked.releases == self.pool.releases
            and not self.pool.cached_prefix(blocked.missing)
        )

    def _holds_back(self) -> bool:
        """Whether no waiting sequence would be admitted now."""
        first = self.waiting.first()
        if first is None or len(self.running) >= self.shape.max_num_seqs:
            return True
        return not first.in_flight and self._is_blocked(first)

    def _admit(self, sequence: SimSequence, hits: list[int], step: Step) -> None:
        self.waiting.remove(sequence)
        self.running.append(sequence)
        self._blocked = None
        sequence.phase = Phase.RUNNING
        self.pool.touch(hits)
        sequence.blocks = hits
        sequence.registered = len(hits)
        sequence.computed = len(hits) * self.shape.block_size
        step.admitted.append(sequence.key)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
            step.queries += sequence.known
            step.hits += sequence.computed

    def _missing(self, sequence: SimSequence, count: int) -> int:
        return -(-(sequence.computed + count) // self.shape.block_size) - len(sequence.blocks)

    def _schedule(self, sequence: SimSequence, count: int, step: Step) -> None:
        """Gives the sequence's next tokens their blocks.

        As in vLLM the blocks that they fill can be found at once, by the next sequence of the same step too, before
        they are computed. They stay so even where the sequence is preempted later in the step.
        """
        missing = self._missing(sequence, count)
        if missing > 0:
            sequence.blocks += self.pool.take(missing)
        self._register(sequence, min(sequence.computed + count, sequence.known))
        step.scheduled.append((sequence, count))
        if sequence.computed + count >= sequence.known + sequence.pending:
            size = self.shape.block_size
            sequence.quiet = min(len(sequence.blocks) * size, (sequence.registered + 1) * size - 1, sequence.last - 1)

    def _register(self, sequence: SimSequence, tokens: int) -> None:
        """Its blocks that these first tokens fill can be found. Their tokens must be known."""
        full = tokens // self.shape.block_size
        if full > sequence.registered:
            sequence.extend_hashes(full, self.shape.block_size)
            filled = slice(sequence.registered, full)
            self.pool.register(sequence.blocks[filled], sequence.hashes[filled])
            sequence.registered = full

    def _start(self, sequence: SimSequence, count: int, step: Step) -> None:
        start = sequence.computed
        sequence.computed = start + count
        sequence.in_flight += 1
        if count == 1 and start >= sequence.prompt_tokens:
            step.decodes += 1
            step.context_tokens += sequence.computed
        else:
            step.prefill_tokens += count
            step.prefill_pairs += count * (start + count / 2)
        if sequence.computed >= sequence.known + sequence.pending:
            sequence.pending += 1
            step.saying.append(sequence)

    def _hear(self, sequence: SimSequence, step: Step) -> None:
        token_id, ending = sequence.say()
        if sequence.phase is Phase.RUNNING:
            sequence.pending -= 1
            self._register(sequence, sequence.computed - sequence.pending)
        else:
            # It was preempted meanwhile; what it says may fill a block that is cached from somewhere else.
            sequence.extend_hashes(sequence.known // self.shape.block_size, self.shape.block_size)
        if ending:
            if sequence.phase is Phase.RUNNING:
                self._release(sequence)
            self._end(sequence)
        step.said += 1
        step.tokens.append(Token(sequence.key, token_id, ending, sequence.cached_tokens or 0))

    def _end(self, sequence: SimSequence) -> None:
        if sequence.phase is Phase.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.phase, sequence.quiet = Phase.GONE, 0
        del self._sequences[sequence.key]
        self._to_tell = True

    def _release(self, sequence: SimSequence) -> None:
        self.pool.release(sequence.blocks[::-1])
        sequence.blocks = []
        sequence.registered = 0

    def validate(self) -> None:
        """Asserts the invariants of the whole state. For tests."""
        self.pool.validate([sequence.blocks for sequence in self.running])
        assert len(self.running) <= self.shape.max_num_seqs
        assert all(not sequence.blocks for sequence in self.waiting)
        assert len(self._sequences) == len(self.running) + len(self.waiting)
        for sequence in self.running:
            assert sequence.computed <= sequence.known + sequence.pending
            assert len(sequence.blocks) * self.shape.block_size >= sequence.computed
