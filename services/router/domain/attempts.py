"""What happens when an attempt fails: try another worker, or tell the caller, and in which words."""

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
        Reason.TICKET_INVALID,
        Reason.TICKET_EXPIRED,
        Reason.TICKET_USED,
        Reason.WORKER_LOST_MID_STREAM,
        Reason.INTERNAL,
    }
)


def may_try_another(error: DownstackError, *, attempt: int, output_tokens: int) -> bool:
    """Whether the request is placed again: only before the first token, and only once."""
    return attempt < MOST_ATTEMPTS and output_tokens == 0 and error.reason in _ANOTHER_WORKER_MAY


def as_told(error: DownstackError, *, attempt: int, output_tokens: int) -> DownstackError:
    """The error of a worker in the words of the caller: it names no internal cause of the router's own dealings."""
    if error.reason not in _ANOTHER_WORKER_MAY:
        return error
    metadata = {**error.metadata, "attempts": str(attempt), "output_tokens": str(output_tokens)}
    if output_tokens:
        return DownstackError(
            Reason.WORKER_LOST_MID_STREAM,
            f"the worker was lost after {output_tokens} tokens",
            metadata=metadata,
        )
    reason = error.reason if error.code == Code.UNAVAILABLE else Reason.NO_HEALTHY_WORKER
    return DownstackError(
        reason,
        f"no worker could answer after {attempt} attempt{'s' if attempt > 1 else ''}: {error.message}",
        metadata=metadata,
        retry_after_s=error.retry_after_s or RETRY_AFTER_S,
    )


def finish_reason_of(error: DownstackError) -> FinishReason:
    """How a lease ended whose attempt failed with this error."""
    if error.code == Code.CANCELLED:
        return FinishReason.CANCELLED
    if error.code == Code.DEADLINE_EXCEEDED:
        return FinishReason.DEADLINE
    return FinishReason.ERROR
