"""A scheduler without database and broker, pinned to one core: prints its address, and ends with its standard input."""

import asyncio
import os
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import uvloop

from services.kit.clock import SystemClock
from services.kit.events.outbox import Outbox
from services.kit.identity import AssertionAuthenticator
from services.kit.server import ServiceParts, serving
from services.scheduler.adapters.fake_budgets import FakeBudgets
from services.scheduler.adapters.fake_journal import FakeJournal
from services.scheduler.adapters.fake_ledger import FakeLedger
from services.scheduler.adapters.meter import SilentMeter
from services.scheduler.adapters.outbox_journal import OutboxJournal
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.app import Scheduler, ShellLimits
from services.scheduler.budget_keeper import BudgetKeeper, BudgetLimits
from services.scheduler.ports import Journal
from services.scheduler.settings import SchedulerSettings
from services.scheduler.wiring import ACCESS, ENDLESS, bindings, make_brain

SECRET = b"a secret of the place benchmark"


async def serve(kind: str, outbox_path: Path) -> None:
    """Serve until the parent closes the pipe."""
    clock = SystemClock()
    settings = SchedulerSettings(
        listen="127.0.0.1:0",
        service_secret=SECRET.decode(),
        postgres_dsn="postgresql://none",
        kafka_bootstrap="none:1",
        outbox_path=outbox_path,
        key_pepper="a pepper of the place benchmark",
        log_level="warning",
        drain_s=1.0,
        settle_s=0.0,
    )
    brain = make_brain(settings, clock)
    async with AsyncExitStack() as stack:
        journal: Journal = FakeJournal()
        if kind == "outbox":
            opened = Outbox.open(outbox_path, max_events=settings.outbox_max_events, max_bytes=1 << 34)
            outbox = await stack.enter_async_context(opened)
            journal = OutboxJournal(outbox, scheduler_id="sch", prices=brain.prices, timeline=Timeline(clock))
        scheduler = Scheduler(brain, clock=clock, journal=journal, meter=SilentMeter(), limits=ShellLimits())
        ledger = FakeLedger()
        keeper = BudgetKeeper(
            FakeBudgets(ledger),
            brain.budgets,
            apply=scheduler.apply,
            journal=journal,
            clock=clock,
            limits=BudgetLimits(),
        )
        parts = ServiceParts(
            bindings=bindings(scheduler, ledger, keeper, scheduler_id="sch", secret=SECRET, clock=clock),
            access=ACCESS,
            authenticator=AssertionAuthenticator(SECRET, clock),
            on_drain=scheduler.drain,
            endless=ENDLESS,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(task()) for task in (scheduler.run_ticks, scheduler.run_records)]
            async with serving(parts, settings) as server:
                print(server.address, flush=True)
                await asyncio.to_thread(sys.stdin.read)
            for task in running:
                task.cancel()


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[3])})
    with suppress(asyncio.CancelledError):
        uvloop.run(serve(sys.argv[1], Path(sys.argv[2])))
