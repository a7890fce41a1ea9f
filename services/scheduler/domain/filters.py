"""The filters that every policy keeps to: what a worker cannot do, and what the caller does not want."""

from dataclasses import dataclass

from services.scheduler.domain.cost import NANO
from services.scheduler.domain.grammar import Candidate, Filter
from services.scheduler.domain.request import Request


class Ready:
    """Excludes workers that are lost, draining or not healthy."""

    name = "ready"

    def admits(self, candidate: Candidate, _request: Request, /) -> bool:
        return candidate.worker.ready


class NotTried:
    """Excludes workers that the caller tried already."""

    name = "not-tried"

    def admits(self, candidate: Candidate, request: Request, /) -> bool:
        return candidate.worker.worker_id not in request.excluded_workers


class Context:
    """Excludes workers whose context or KV cache cannot hold the prompt and one token."""

    name = "context"

    def admits(self, candidate: Candidate, _request: Request, /) -> bool:
        spec = candidate.worker.spec
        return candidate.offer.prompt_tokens < min(spec.context_tokens, spec.kv_tokens)


class Bounds:
    """Excludes what costs more, or is worth less, than the caller allows."""

    name = "bounds"

    def admits(self, candidate: Candidate, request: Request, /) -> bool:
        if request.min_quality is not None and candidate.offer.quality < request.min_quality:
            return False
        return request.max_cost is None or candidate.estimate.charge_nano <= request.max_cost * NANO


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Excludes workers that are full: what waits, waits where its order can still change."""

    look_ahead: int
    name: str = "capacity"

    def admits(self, candidate: Candidate, _request: Request, /) -> bool:
        spec, held = candidate.worker.spec, candidate.held
        if not held.requests:
            return True
        needed = candidate.offer.prompt_tokens - candidate.cached_tokens + candidate.output_tokens
        return held.requests < spec.max_num_seqs + self.look_ahead and held.kv_tokens + needed <= spec.kv_tokens


def required(*, look_ahead: int) -> tuple[Filter, ...]:
    """The filters of every policy, in the order in which they name the reason."""
    return (Ready(), NotTried(), Context(), Bounds(), Capacity(look_ahead=look_ahead))
