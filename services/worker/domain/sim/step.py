"""One step of the simulated engine."""

from dataclasses import dataclass, field

from services.worker.domain.mirror import KvChange
from services.worker.domain.sim.sequence import SimSequence


@dataclass(frozen=True, slots=True)
class Token:
    """One token of one sequence; `ending` is "stop" or "length" with its last one."""

    key: str
    token_id: int
    ending: str | None
    cached_tokens: int


@dataclass(slots=True)
class Step:
    """One step: what was scheduled, and once it is done what came of it.

    Attributes:
        scheduled: The sequences that compute something, in order, and how many tokens each.
        saying: Those of them that say a token, in order.
        prefill_tokens: The tokens of prompts, and of answers that are computed again, that it computes.
        prefill_pairs: The pairs of such a token and a token before it.
        decodes: The sequences that compute nothing but their last token.
        context_tokens: The tokens that these hold together.
        queries: The tokens that were looked up in the prefix cache; sequences count once, however often preempted.
        hits: Those of them that were found.
        said: How many tokens were said.
        tokens: Those of them that matter: all of sequences with content, the first and some more of the others.
        changes: What happened to the blocks since the step before it was done.
    """

    scheduled: list[tuple[SimSequence, int]] = field(default_factory=list)
    saying: list[SimSequence] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decodes: int = 0
    context_tokens: int = 0
    queries: int = 0
    hits: int = 0
    said: int = 0
    tokens: list[Token] = field(default_factory=list)
    changes: list[KvChange] = field(default_factory=list)
