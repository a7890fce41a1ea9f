"""Joins the placements of a request with the ledger rows that they ended in."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason
from services.router.domain.outcome import Cost, FinishReason, Timings, Usage


@dataclass(frozen=True, slots=True)
class Placed:
    """One placement. `record` is the scheduler's own record of it, handed on as it came."""

    lease_id: str
    attempt: int
    decided_at_ns: int
    record: object


@dataclass(frozen=True, slots=True)
class Billed:
    """One ledger row."""

    lease_id: str
    attempt: int
    model: str
    worker_id: str
    finish_reason: FinishReason
    usage: Usage
    cost: Cost | None
    timings: Timings


@dataclass(frozen=True, slots=True)
class Attempt:
    """One placement and its row; either may not have arrived yet, but not both."""

    placed: Placed | None
    billed: Billed | None


def join(request_id: str, placed: Sequence[Placed], billed: Sequence[Billed]) -> list[Attempt]:
    """The attempts in order. Raises REQUEST_NOT_FOUND where there is neither a placement nor a row."""
    rows = {row.lease_id: row for row in billed}
    attempts = [(p.attempt, Attempt(placed=p, billed=rows.pop(p.lease_id, None))) for p in placed]
    attempts += [(row.attempt, Attempt(placed=None, billed=row)) for row in rows.values()]
    if not attempts:
        raise DownstackError(
            Reason.REQUEST_NOT_FOUND, f"there is no request {request_id}", metadata={"request_id": request_id}
        )
    return [attempt for _, attempt in sorted(attempts, key=lambda numbered: numbered[0])]
