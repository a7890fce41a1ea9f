"""One answer that is being generated, and the sizes of the engine that does it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from services.kit.blocks import next_hash, root_hash
from services.worker.domain.sim.tokens import TokenStream


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of an engine."""

    block_size: int
    kv_blocks: int
    context_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Phase(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


@dataclass(eq=False, slots=True)
class SimSequence:
    """One answer that is being generated.

    Attributes:
        tokens: The prompt, then the answer; empty where only the lengths and the hashes are simulated.
        root: The hash before its first block.
        stream: Says the tokens. None: their content is not simulated, each is 0.
        ends: Tokens that end it.
        arrival: Ranks sequences of one priority.
        known: The length of the prompt and of the answer so far.
        computed: The tokens whose KV is in its blocks, or will be once the steps in flight are done.
        pending: The tokens that the steps in flight will say.
        in_flight: The steps that were scheduled with it and are not done.
        quiet: While fewer tokens are computed, the next step computes one more in the blocks that are there.
        last: The length at which it ends at the latest.
    """

    key: str
    tokens: list[int]
    root: int
    stream: TokenStream | None
    max_tokens: int
    min_tokens: int = 0
    ends: frozenset[int] = frozenset()
    priority: int = 0
    arrival: int = 0
    prompt_tokens: int = 0
    known: int = 0
    computed: int = 0
    pending: int = 0
    in_flight: int = 0
    quiet: int = 0
    last: int = 0
    phase: Phase = Phase.WAITING
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    registered: int = 0
    cached_tokens: int | None = None
    preemptions: int = 0

    @classmethod
    def of_hashes(
        cls, key: str, *, prompt_tokens: int, hashes: Iterable[int], output_tokens: int, priority: int = 0
    ) -> "SimSequence":
        """A sequence without content: the hashes of its prompt's full blocks, and how long its answer is.

        What it says is not shared with any other sequence: its blocks' hashes follow from its key.
        """
        return cls(
            key=key,
            tokens=[],
            root=root_hash(model=key, tokenizer_revision=""),
            stream=None,
            max_tokens=output_tokens,
            priority=priority,
            prompt_tokens=prompt_tokens,
            hashes=list(hashes),
        )

    @property
    def rank(self) -> tuple[int, int]:
        """The lowest goes first."""
        return (self.priority, self.arrival)

    @property
    def said(self) -> int:
        """The length of the answer so far."""
        return self.known - self.prompt_tokens

    def begin(self, arrival: int, *, context_tokens: int) -> None:
        """It is the engine's now."""
        self.arrival = arrival
        if self.stream is not None:
            self.prompt_tokens = len(self.tokens)
        self.known = self.prompt_tokens
        self.last = min(self.prompt_tokens + self.max_tokens, context_tokens)

    def extend_hashes(self, blocks: int, block_size: int) -> None:
        """Make sure that the first `blocks` blocks, all of whose tokens are known, have their hashes."""
        hashes = self.hashes
        while len(hashes) < blocks:
            if self.stream is None:
                hashes.append((self.root + len(hashes)) % 2**64)
            else:
                start = len(hashes) * block_size
                hashes.append(next_hash(hashes[-1] if hashes else self.root, self.tokens[start : start + block_size]))

    def say(self) -> tuple[int, str | None]:
        """The next token, and how it ends the answer if it does."""
        token_id = 0
        if self.stream is not None:
            token_id = self.stream.next(may_end=bool(self.ends) and self.said >= self.min_tokens)
            self.tokens.append(token_id)
        self.known += 1
        if token_id in self.ends and self.said > self.min_tokens:
            return token_id, "stop"
        if self.known >= self.last:
            return token_id, "length"
        return token_id, None
