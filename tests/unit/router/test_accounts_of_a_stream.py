"""Counts and times of a stream, its salt and hash, and what is told of it later."""

import pytest

from services.kit.errors import DownstackError, Reason
from services.router.domain.caller_events import validate_events
from services.router.domain.explanation import Billed, Placed, join
from services.router.domain.facts import CallerEvent
from services.router.domain.outcome import FinishReason, Timings, Usage
from services.router.domain.progress import Progress
from services.router.domain.secrets import cache_salt, prompt_hash


def test_times_of_a_stream() -> None:
    """The first token, the mean gap after it, and the whole, as the caller sees them."""
    progress = Progress(received_s=10.0, prompt_tokens=5, prepare_s=0.1, queue_ms=3.0)
    progress.token_frame(output_tokens=1, cached_tokens=2, now_s=10.5)
    progress.token_frame(output_tokens=3, cached_tokens=None, now_s=10.7)
    timings = progress.timings(Timings(engine_queue_ms=1.0, ttft_ms=99.0), now_s=11.0)
    assert timings.ttft_ms == pytest.approx(500.0)
    assert timings.tpot_ms == pytest.approx(100.0)
    assert timings.total_ms == pytest.approx(1000.0)
    assert (timings.queue_ms, timings.engine_queue_ms) == (3.0, 1.0)
    assert timings.prepare_ms == pytest.approx(100.0)


def test_what_is_not_known_is_absent() -> None:
    """No token, no times of tokens; one token, no gap."""
    progress = Progress(received_s=0.0)
    assert progress.timings(Timings(), now_s=1.0).ttft_ms is None
    progress.token_frame(output_tokens=1, cached_tokens=None, now_s=0.5)
    assert progress.tpot_s is None
    assert progress.delivered().input_cached is None


def test_the_engines_count_goes_before_the_routers() -> None:
    """What the engine does not say is filled in; what was delivered is the router's to say."""
    progress = Progress(received_s=0.0, prompt_tokens=5, retrieved_tokens=2)
    progress.token_frame(output_tokens=4, cached_tokens=3, now_s=1.0)
    usage = progress.usage(Usage(output_total=6, reasoning=1))
    assert (usage.input_total, usage.input_cached, usage.output_total, usage.output_delivered) == (5, 3, 6, 4)
    assert (usage.reasoning, usage.retrieved_context) == (1, 2)


def test_salts_and_hashes_differ_between_tenants_and_secrets() -> None:
    """One tenant's cache and prompts say nothing to another."""
    salts = {cache_salt(secret, tenant_id=tenant) for secret in (b"a", b"b") for tenant in ("t", "u")}
    assert len(salts) == 4
    assert all(len(salt) == 22 for salt in salts)
    hashes = {prompt_hash(b"a", tenant_id=tenant, token_ids=ids) for tenant in ("t", "u") for ids in ([1], [1, 2])}
    assert len(hashes) == 4
    assert cache_salt(b"a", tenant_id="t") == cache_salt(b"a", tenant_id="t")


def billed(lease_id: str, attempt: int) -> Billed:
    return Billed(
        lease_id=lease_id,
        attempt=attempt,
        model="m",
        worker_id="w",
        finish_reason=FinishReason.STOP,
        usage=Usage(),
        cost=None,
        timings=Timings(),
    )


def test_placements_and_rows_are_joined_by_lease() -> None:
    """In order of the attempts; a row may come before its decision, and a decision before its row."""
    placed = [Placed(lease_id="l1", attempt=1, decided_at_ns=1, record="one")]
    attempts = join("r", placed, [billed("l3", 3), billed("l2", 2), billed("l1", 1)])
    assert [(a.placed is not None, a.billed.lease_id if a.billed else "") for a in attempts] == [
        (True, "l1"),
        (False, "l2"),
        (False, "l3"),
    ]
    assert join("r", placed, [])[0].billed is None


def test_nothing_known_is_not_found() -> None:
    """Another tenant's request ends here as well: the ledger shows nothing of it."""
    with pytest.raises(DownstackError) as raised:
        join("r", [], [])
    assert raised.value.reason == Reason.REQUEST_NOT_FOUND


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (CallerEvent(id="", kind="k"), "id"),
        (CallerEvent(id="i" * 129, kind="k"), "id"),
        (CallerEvent(id="i", kind=""), "kind"),
        (CallerEvent(id="i", kind="k" * 65), "kind"),
        (CallerEvent(id="i", kind="k", request_id="r" * 129), "request_id"),
        (CallerEvent(id="i", kind="k", conversation_id="c" * 129), "conversation_id"),
        (CallerEvent(id="i", kind="k", attributes=b"x" * 8193), "attributes"),
        (CallerEvent(id="i", kind="k", caller_time_ns=-(10**20)), "occurred_at"),
    ],
)
def test_limits_of_the_callers_events(event: CallerEvent, field: str) -> None:
    """The violation names the event and the field."""
    with pytest.raises(DownstackError) as raised:
        validate_events([CallerEvent(id="fine", kind="k"), event])
    assert [violation.field for violation in raised.value.violations] == [f"events[1].{field}"]


@pytest.mark.parametrize("count", [0, 101])
def test_how_many_events(count: int) -> None:
    """At least one, at most a hundred."""
    with pytest.raises(DownstackError):
        validate_events([CallerEvent(id=str(n), kind="k") for n in range(count)])
    validate_events([CallerEvent(id=str(n), kind="k") for n in range(100)])
