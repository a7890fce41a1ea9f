"""Every lease ends in one row, even if the scheduler is killed: real PostgreSQL, real Kafka, a real process."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from downstack.local.kafka import LocalKafka
from downstack.scheduler.v1 import ledger_pb2
from downstack.scheduler.v1.scheduler_pb2 import LeasePhase, LeaseState
from downstack.types.v1.usage_pb2 import FinishReason, UsageSource
from prometheus_client import REGISTRY

from services.kit.channel import open_channel
from services.kit.tickets import verify_ticket
from tests.conftest import MakeDatabase
from tests.integration.scheduler.arrange import NOON, decided, usage
from tests.integration.scheduler.system import (
    PATIENCE_S,
    PEPPER,
    SECRET,
    Place,
    System,
    as_router,
    make_place,
    place_request,
    publish,
    running,
    worker,
)

pytestmark = pytest.mark.timeout(240)
ROOT = Path(__file__).parents[3]
TIMES: dict[str, Any] = {"start_grace_s": 0.1, "reconcile_after_s": 1.0, "reconcile_interval_s": 0.2}


@pytest.fixture(scope="module")
async def place(make_database: MakeDatabase, kafka: LocalKafka, short_tmp: Path) -> Place:
    address = await make_database("services.kit.accounts")
    path = short_tmp / "reconciling-outbox"
    return await make_place(address, bootstrap=kafka.bootstrap, outbox_path=path, ticket_ttl_s=1.0, **TIMES)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"downstack_scheduler_{name}", labels) or 0.0


async def rows_of(system: System, request_id: str, number: int = 0) -> list[ledger_pb2.UsageRow]:
    """The rows of a request, once there are any."""
    request = ledger_pb2.ListUsageRequest(filter=ledger_pb2.UsageFilter(request_id=request_id))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await system.ledger.ListUsage(request, metadata=system.key(number))
            if found.rows:
                return list(found.rows)
            await asyncio.sleep(0.1)


async def test_a_decision_without_a_row_gets_one(place: Place, short_tmp: Path) -> None:
    """Two schedulers that know nothing of a lease close it as unused, together once, and a late record changes nothing.

    The row says all that the lease was granted for; a lease whose row is there is left alone.
    """
    tenant = place.tenants[0]
    twin = place.settings.model_copy(update={"outbox_path": short_tmp / "reconciling-twin-outbox"})
    grant: dict[str, Any] = {"key_id": "key00001", "model": "m", "requested_model": "auto", "labels": {"team": "a"}}
    events = [
        usage("lse_whole", tenant, request_id="req_whole"),
        decided("lse_whole", tenant, request_id="req_whole", **grant),
        decided("lse_open", tenant, request_id="req_open", attempt=2, **grant),
    ]
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(running(place))
        other = await stack.enter_async_context(running(Place(twin, place.tenants, place.keys)))
        for each in (system, other):
            await stack.enter_async_context(worker(each))
        await publish(place, short_tmp / "lost-outbox", *events)
        (row,) = await rows_of(system, "req_open")
        assert (row.lease_id, row.attempt, row.worker_id, row.key_id) == ("lse_open", 2, "w1", "key00001")
        assert (row.model, row.labels["team"], row.timings.queue_ms) == ("m", "a", 1.5)
        assert row.finish_reason == FinishReason.FINISH_REASON_UNUSED
        assert (row.usage.input_total, row.usage.output_total) == (0, 0)
        assert (row.cost.nano_units, row.cost.currency, row.cost.price_version) == (0, "EUR", "7")
        assert row.finished_at.seconds == NOON + 30, "when its ticket expired"

        before = counted("ledger_late_records_total", source="engine")
        late = usage("lse_open", tenant, request_id="req_open")
        await publish(place, short_tmp / "slow-outbox", late, usage("lse_after", tenant, request_id="req_after"))
        await rows_of(system, "req_after")
        assert await rows_of(system, "req_open") == [row]
        assert counted("ledger_late_records_total", source="engine") == before + 1
        (whole,) = await rows_of(system, "req_whole")
        assert whole.finish_reason == FinishReason.FINISH_REASON_STOP
        assert sum(total.rows for total in (await system.rows(3)).totals) == 3
        await until_matched()


async def until_matched() -> None:
    """Return when the schedulers find nothing more without a row."""
    async with asyncio.timeout(PATIENCE_S):
        while counted("ledger_unmatched_leases"):  # noqa: ASYNC110  a gauge tells nobody
            await asyncio.sleep(0.1)


@asynccontextmanager
async def process(place: Place, **changed: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, System]]:
    """The scheduler as a process of its own."""
    chosen = place.settings
    values = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "service_secret": SECRET,
        "key_pepper": PEPPER,
        "postgres_dsn": chosen.postgres_dsn.get_secret_value(),
        "kafka_bootstrap": chosen.kafka_bootstrap,
        "outbox_path": chosen.outbox_path,
        **TIMES,
        **changed,
    }
    env = {f"DOWNSTACK_SCHEDULER_{name.upper()}": str(value) for name, value in values.items()}
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.scheduler"),
        env={**env, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    async with AsyncExitStack() as stack:
        try:
            address = await asyncio.wait_for(_listening(started), PATIENCE_S)
            assert started.stderr is not None
            reading = asyncio.create_task(started.stderr.read())
            stack.callback(reading.cancel)
            channel = await stack.enter_async_context(open_channel(address))
            yield started, System(channel, place)
        finally:
            if started.returncode is None:
                started.kill()
                await started.wait()


async def _listening(started: asyncio.subprocess.Process) -> str:
    lines = []
    assert started.stderr is not None
    while raw := await started.stderr.readline():
        lines.append(raw.decode())
        if raw.startswith(b"{") and json.loads(raw)["event"] == "listening":
            return str(json.loads(raw)["grpc"])
    raise AssertionError(f"it did not start: {lines}")


async def test_a_killed_scheduler_leaves_no_lease_open(place: Place) -> None:
    """Granted, then killed before any worker was asked: the next process closes the lease.

    A lease that its worker runs is not closed: the worker names it to the next process.
    """
    tenant, caller = place.tenants[1], as_router(place.tenants[1])
    async with process(place, ticket_ttl_s=3.0) as (started, system), worker(system):
        ran = await system.scheduler.Place(place_request("req_r", tenant), metadata=caller, timeout=20)
        lost = await system.scheduler.Place(place_request("req_l", tenant), metadata=caller, timeout=20)
        started.kill()
        await started.wait()
    grant = verify_ticket(ran.ticket, secret=SECRET.encode())
    state = LeaseState(lease_id=ran.lease_id, phase=LeasePhase.LEASE_PHASE_DECODING, grant=grant)
    async with process(place, ticket_ttl_s=3.0) as (_, system), worker(system, state):
        (row,) = await rows_of(system, "req_l", number=1)
        assert (row.lease_id, row.worker_id) == (lost.lease_id, "w1")
        assert (row.finish_reason, row.source) == (
            FinishReason.FINISH_REASON_UNUSED,
            UsageSource.USAGE_SOURCE_LAST_REPORT,
        )
        assert abs(row.finished_at.ToMicroseconds() - lost.expires_at.ToMicroseconds()) < 100_000
        assert (row.cost.currency, row.cost.price_version) == ("USD", "1")
        request = ledger_pb2.DescribeRequestRequest(request_id="req_r")
        described = await system.ledger.DescribeRequest(request, metadata=system.key(1))
        assert [each.decision.lease_id for each in described.decisions] == [ran.lease_id]
        assert not described.rows
