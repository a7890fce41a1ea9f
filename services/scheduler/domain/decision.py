"""The record of one placement: what was considered, what was chosen, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.scheduler.domain.grammar import Slate
from services.scheduler.domain.record import Considered, Shortlist

MAX_CANDIDATES = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """A placement and its reasons; the best candidates first, at most 32."""

    request_id: str
    attempt: int
    tenant_id: str
    lease_id: str
    model: str
    worker_id: str
    policy: str
    reason: str
    shortlist: Shortlist
    prompt_tokens: int
    predicted_cached_tokens: int
    queue_ms: float
    decided_at: float
    budget_warnings: tuple[str, ...] = ()
    """The soft budgets that the placement passes, or finds passed."""

    @property
    def candidates(self) -> Sequence[Considered]:
        return self.shortlist.first(MAX_CANDIDATES)


def shortlist(slate: Slate, chosen: int) -> Shortlist:
    """The candidates that the record keeps: the chosen one, the best others, then the filtered ones."""
    others = [row for row in slate.best(MAX_CANDIDATES) if row != chosen]
    return slate.shortlist([chosen, *others[: MAX_CANDIDATES - 1]])


def reason_of(candidates: Sequence[Considered], slate: Slate, *, prompt_tokens: int) -> str:
    """One sentence for a person: what the chosen worker had, and what the best other would have taken."""
    chosen = candidates[0]
    held = f"holds {chosen.cached_tokens} of {prompt_tokens} prompt tokens"
    sentence = (
        f"{chosen.worker_id} {held if chosen.cached_tokens else 'holds none of the prompt'}, "
        f"runs {chosen.running_requests} requests, and should give the first token in {chosen.ttft_ms:.0f} ms"
    )
    if len(candidates) == 1:
        return f"{sentence}; it is the only worker."
    best = candidates[1]
    if best.filtered_by:
        return f"{sentence}; all others were excluded ({', '.join(sorted(slate.refusals))})."
    other = f"{best.worker_id} would take {best.ttft_ms:.0f} ms with {best.cached_tokens} cached"
    return f"{sentence}; {other}."
