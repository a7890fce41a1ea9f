"""The record of one placement: what was considered, what was chosen, and why."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from services.scheduler.domain.grammar import Candidate

MAX_CANDIDATES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """One worker that was considered. `score` is None for one that a filter excluded."""

    worker_id: str
    model: str
    cached_tokens: int
    ttft_ms: float
    total_ms: float
    charge_nano: int
    score: float | None
    filtered_by: str
    running_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
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
    candidates: tuple[Considered, ...]
    prompt_tokens: int
    predicted_cached_tokens: int
    queue_ms: float
    decided_at: float


def considered(candidates: Sequence[Candidate], chosen: Candidate) -> tuple[Considered, ...]:
    """The candidates as the record keeps them: the chosen one, the best others, then the filtered ones."""

    def rank(candidate: Candidate) -> tuple[bool, bool, float, float]:
        passed = not candidate.filtered_by
        return (candidate is not chosen, not passed, -candidate.score if passed else 0.0, candidate.estimate.ttft_ms)

    return tuple(_record(candidate) for candidate in heapq.nsmallest(MAX_CANDIDATES, candidates, key=rank))


def _record(candidate: Candidate) -> Considered:
    return Considered(
        worker_id=candidate.worker.worker_id,
        model=candidate.offer.model,
        cached_tokens=candidate.cached_tokens,
        ttft_ms=candidate.estimate.ttft_ms,
        total_ms=candidate.estimate.total_ms,
        charge_nano=candidate.estimate.charge_nano,
        score=None if candidate.filtered_by else candidate.score,
        filtered_by=candidate.filtered_by,
        running_requests=candidate.held.requests,
    )


def reason_of(candidates: Sequence[Candidate], chosen: Candidate) -> str:
    """One sentence for a person: what the chosen worker had, and what the best other would have taken."""
    prompt, cached = chosen.offer.prompt_tokens, chosen.cached_tokens
    held = f"holds {cached} of {prompt} prompt tokens" if cached else "holds none of the prompt"
    sentence = (
        f"{chosen.worker.worker_id} {held}, runs {chosen.held.requests} requests, "
        f"and should give the first token in {chosen.estimate.ttft_ms:.0f} ms"
    )
    others = [other for other in candidates if other is not chosen and not other.filtered_by]
    if others:
        best = max(others, key=lambda other: other.score)
        other = f"{best.worker.worker_id} would take {best.estimate.ttft_ms:.0f} ms with {best.cached_tokens} cached"
        return f"{sentence}; {other}."
    if len(candidates) == 1:
        return f"{sentence}; it is the only worker."
    excluded = sorted({other.filtered_by for other in candidates if other.filtered_by})
    return f"{sentence}; all others were excluded ({', '.join(excluded)})."
