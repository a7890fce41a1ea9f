"""What happens when an attempt fails: try another worker, or tell the caller, and in which words."""

from dataclasses import dataclass

from services.kit.errors import Code, DownstackError, Reason
from services.router.domain.models import RETRY_AFTER_S
from services.router.domain.outcome import FinishReason

MOST_ATTEMPTS = 2

# The worker could not run the lease, and another one may. Everything else is the caller's own or would repeat itself.
_ANOTHER_WORKER_MAY = frozenset(
    {
        Reason.ENGINE_DEAD,
        Reason.NO_HEALTHY_WORKER,
        Reason.OVERLOADED,
        Reason.DRAINING,
        Reason.DEPENDENCY_UNAVAILABLE,
        Reason.JOURNAL_FULL,
        Reason.STALE_EPOCH,
        Reason.ADAPTER_NOT_FOUND,
        Reason.TICKET_INVALID,
        Reason.TICKET_EXPIRED,
        Reason.TICKET_USED,
        Reason.WORKER_LOST_MID_STREAM,
        Reason.INTERNAL,
    }
)


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that failed. `delivered` is true once the caller got a frame of it."""

    error: DownstackError
    attempt: int
    delivered: bool
    output_tokens: int


def may_try_another(failed: Failed) -> bool:
    """Whether the request is placed again: only before the caller saw anything of it, and only once."""
    return failed.attempt < MOST_ATTEMPTS and not failed.delivered and failed.error.reason in _ANOTHER_WORKER_MAY


def as_told(failed: Failed) -> DownstackError:
    """The error of a worker in the words of the caller."""
    error, attempt, output_tokens = failed.error, failed.attempt, failed.output_tokens
    if error.code == Code.DEADLINE_EXCEEDED:
        return deadline_passed(Reason.DEADLINE_IN_GENERATION, output_tokens=output_tokens)
    if error.reason not in _ANOTHER_WORKER_MAY:
        return error
    # What the worker's own error had to say belongs into the router's log, not into the caller's hands.
    metadata = {"attempts": str(attempt), "output_tokens": str(output_tokens)}
    if failed.delivered:
        return DownstackError(
            Reason.WORKER_LOST_MID_STREAM,
            f"the worker was lost after {output_tokens} tokens",
            metadata=metadata,
        )
    reason = error.reason if error.code == Code.UNAVAILABLE else Reason.NO_HEALTHY_WORKER
    return DownstackError(
        reason,
        f"no worker could answer in {attempt} attempt{'s' if attempt > 1 else ''}",
        metadata=metadata,
        retry_after_s=error.retry_after_s or RETRY_AFTER_S,
    )


def deadline_passed(reason: Reason, *, output_tokens: int = 0) -> DownstackError:
    """The caller's deadline passed: DEADLINE_IN_QUEUE before a worker was found, DEADLINE_IN_GENERATION after."""
    where = "before a worker was found" if reason == Reason.DEADLINE_IN_QUEUE else f"after {output_tokens} tokens"
    return DownstackError(reason, f"the deadline passed {where}", metadata={"output_tokens": str(output_tokens)})


def finish_reason_of(error: DownstackError) -> FinishReason:
    """How a lease ended whose attempt failed with this error."""
    if error.code == Code.CANCELLED:
        return FinishReason.CANCELLED
    if error.code == Code.DEADLINE_EXCEEDED:
        return FinishReason.DEADLINE
    return FinishReason.ERROR
