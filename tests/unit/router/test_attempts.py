"""What happens when an attempt fails."""

import pytest

from services.kit.errors import CODE_OF, Code, DownstackError, Reason
from services.router.domain.attempts import Failed, as_told, finish_reason_of, may_try_another
from services.router.domain.outcome import FinishReason

WORKERS_FAULT = [
    Reason.ENGINE_DEAD,
    Reason.DRAINING,
    Reason.DEPENDENCY_UNAVAILABLE,
    Reason.TICKET_USED,
    Reason.INTERNAL,
]
CALLERS_FAULT = [Reason.UNSUPPORTED_FEATURE, Reason.BAD_SCHEMA, Reason.CLIENT_CANCELLED, Reason.DEADLINE_IN_GENERATION]


def failed(reason: Reason, *, attempt: int = 1, output_tokens: int = 0) -> Failed:
    error = DownstackError(reason, "It failed.", metadata={"worker": "w"})
    return Failed(error=error, attempt=attempt, delivered=output_tokens > 0, output_tokens=output_tokens)


@pytest.mark.parametrize("reason", WORKERS_FAULT)
def test_another_worker_is_tried_once_and_only_before_the_first_token(reason: Reason) -> None:
    """A worker's own failure is worth a second attempt, and no third."""
    assert may_try_another(failed(reason))
    assert not may_try_another(failed(reason, attempt=2))
    assert not may_try_another(failed(reason, output_tokens=1))


@pytest.mark.parametrize("reason", CALLERS_FAULT)
def test_what_would_fail_anywhere_is_not_repeated(reason: Reason) -> None:
    """The caller's own mistake or wish stands."""
    assert not may_try_another(failed(reason))
    assert as_told(failed(reason)).code == CODE_OF[reason]


@pytest.mark.parametrize("reason", WORKERS_FAULT)
def test_a_worker_lost_in_the_middle(reason: Reason) -> None:
    """ABORTED, with how much was delivered: the caller decides."""
    told = as_told(failed(reason, output_tokens=7))
    assert (told.code, told.reason) == (Code.ABORTED, Reason.WORKER_LOST_MID_STREAM)
    assert told.metadata["output_tokens"] == "7"
    assert told.retry_after_s is None


@pytest.mark.parametrize("reason", WORKERS_FAULT)
def test_no_worker_could_answer(reason: Reason) -> None:
    """UNAVAILABLE with a time to come back; tickets and defects are the system's business."""
    told = as_told(failed(reason, attempt=2))
    assert told.code == Code.UNAVAILABLE
    assert told.metadata == {"attempts": "2", "output_tokens": "0"}
    assert told.retry_after_s


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        (Reason.CLIENT_CANCELLED, FinishReason.CANCELLED),
        (Reason.DEADLINE_IN_QUEUE, FinishReason.DEADLINE),
        (Reason.DEADLINE_IN_GENERATION, FinishReason.DEADLINE),
        (Reason.WORKER_LOST_MID_STREAM, FinishReason.ERROR),
    ],
)
def test_how_a_lease_ended(reason: Reason, finish_reason: FinishReason) -> None:
    """The scheduler learns the kind of the end."""
    assert finish_reason_of(DownstackError(reason, "")) == finish_reason
