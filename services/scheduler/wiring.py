"""The one place where the scheduler's parts meet."""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from downstack.scheduler.v1.ledger_pb2_grpc import add_LedgerServiceServicer_to_server
from downstack.scheduler.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server

from services.kit.accounts.authenticator import ApiKeyAuthenticator
from services.kit.accounts.cache import KeyCache
from services.kit.accounts.store import AccountStore
from services.kit.clock import Clock, SystemClock
from services.kit.errors import StartupError
from services.kit.events.consumer import EventConsumer
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.events.topics import AUDIT, LEDGER_GROUP, USAGE
from services.kit.identity import Access, AssertionAuthenticator, Authenticator, ChainAuthenticator
from services.kit.ids import new_id
from services.kit.pg.migrate import migrate
from services.kit.pg.pool import Database
from services.kit.server import Binding, ServiceParts
from services.scheduler.adapters.budget_store import PostgresBudgets
from services.scheduler.adapters.ledger_consumer import LedgerConsumer
from services.scheduler.adapters.ledger_gaps import PostgresGaps
from services.scheduler.adapters.ledger_servicer import LedgerServicer
from services.scheduler.adapters.ledger_store import PostgresLedger
from services.scheduler.adapters.meter import PrometheusMeter
from services.scheduler.adapters.outbox_journal import OutboxJournal
from services.scheduler.adapters.page_tokens import PageTokens
from services.scheduler.adapters.scheduler_servicer import SchedulerServicer
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.app import Scheduler, ShellLimits
from services.scheduler.budget_keeper import BudgetKeeper, BudgetLimits
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.cost import DEFAULT_OBJECTIVES
from services.scheduler.domain.policies.registry import UnknownWeightError, policies
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.reconcile import Patience, standing_of
from services.scheduler.domain.request import Price
from services.scheduler.ports import LedgerStore
from services.scheduler.reconciler import ReconcileLimits, Reconciler
from services.scheduler.settings import SchedulerSettings, TokenPrice

_SCHEDULER = "downstack.scheduler.v1.SchedulerService"
_LEDGER = "downstack.scheduler.v1.LedgerService"

_ROUTER = Access.service("router")
_FLEET = Access.any_of(Access.service("router"), Access.scope("usage", "admin"))
_OPERATOR = Access.scope("admin")
_READER = Access.any_of(Access.service("router"), Access.scope("usage"))
ACCESS = {
    f"/{_SCHEDULER}/Place": _ROUTER,
    f"/{_SCHEDULER}/Release": _ROUTER,
    f"/{_SCHEDULER}/Connect": Access.service("worker"),
    f"/{_SCHEDULER}/DescribeFleet": _FLEET,
    f"/{_SCHEDULER}/WatchFleet": _FLEET,
    f"/{_LEDGER}/GetUsage": _READER,
    f"/{_LEDGER}/ListUsage": _READER,
    f"/{_LEDGER}/DescribeRequest": _READER,
    f"/{_LEDGER}/SetBudget": _OPERATOR,
    f"/{_LEDGER}/RemoveBudget": _OPERATOR,
    f"/{_LEDGER}/ListBudgets": Access.any_of(_READER, _OPERATOR),
}
ENDLESS = (f"/{_SCHEDULER}/WatchFleet",)


@asynccontextmanager
async def wire(settings: SchedulerSettings) -> AsyncIterator[ServiceParts]:
    """Everything that a scheduler is made of, from the settings."""
    clock, scheduler_id = SystemClock(), settings.scheduler_id or new_id("sch")
    if settings.postgres_owner_dsn is not None:
        for package in ("services.kit.accounts", "services.scheduler"):
            await migrate(settings.postgres_owner_dsn.get_secret_value(), package)
    async with AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(
            Outbox.open(
                settings.outbox_path, max_events=settings.outbox_max_events, max_bytes=settings.outbox_max_bytes
            )
        )
        db = await stack.enter_async_context(
            Database.open(
                settings.postgres_dsn.get_secret_value(),
                pool_min=settings.pool_min,
                pool_max=settings.pool_max,
                acquire_timeout_s=settings.acquire_timeout_s,
            )
        )
        store = PostgresLedger(db)
        brain, timeline = make_brain(settings, clock), Timeline(clock)
        journal = OutboxJournal(outbox, scheduler_id=scheduler_id, prices=brain.prices, timeline=timeline)
        meter = PrometheusMeter()
        meter.watch(brain, clock=clock)
        scheduler = Scheduler(
            brain,
            clock=clock,
            journal=journal,
            meter=meter,
            limits=ShellLimits(tick_s=settings.tick_s, max_orders=settings.max_orders),
        )
        keeper = BudgetKeeper(
            PostgresBudgets(db, max_budgets=settings.max_budgets),
            brain.budgets,
            apply=scheduler.apply,
            journal=journal,
            clock=clock,
            limits=BudgetLimits(
                refresh_s=settings.budget_refresh_s, tenants_per_refresh=settings.budget_tenants_per_refresh
            ),
        )
        # Nothing is granted before it is known what may be spent.
        await keeper.refresh()
        gaps = PostgresGaps(db, AccountStore(db, pepper=settings.key_pepper.get_secret_value().encode(), clock=clock))
        reconciler = Reconciler(
            gaps,
            journal=journal,
            meter=meter,
            standing=partial(standing_of, book=brain.book, fleet=brain.fleet),
            clock=clock,
            limits=reconcile_limits(settings),
        )
        relay = Relay(outbox, bootstrap=settings.kafka_bootstrap)
        handle = LedgerConsumer(store, meter=meter).handle
        consumer = EventConsumer(settings.kafka_bootstrap, group=LEDGER_GROUP, topics=[USAGE, AUDIT], handle=handle)

        yield ServiceParts(
            bindings=bindings(
                scheduler, store, keeper, scheduler_id=scheduler_id, secret=settings.secret_bytes, clock=clock
            ),
            access=ACCESS,
            authenticator=_authenticator(settings, db, clock),
            tasks=[scheduler.run_ticks, scheduler.run_records, relay.run, consumer.run, reconciler.run, keeper.run],
            ready=db.ping,
            on_drain=scheduler.drain,
            endless=ENDLESS,
        )


def make_brain(settings: SchedulerSettings, clock: Clock) -> Brain:
    """The brain that the settings describe. Raises StartupError for a policy or a weight that there is not."""
    try:
        known = policies(DEFAULT_OBJECTIVES, value=settings.value, weights=settings.weights)
    except UnknownWeightError as error:
        raise StartupError(str(error)) from error
    make = known.get(settings.policy)
    if make is None:
        raise StartupError(f"there is no policy {settings.policy!r}; there are {', '.join(sorted(known))}")
    return Brain(
        limits=settings.limits(),
        policy=make(),
        prices=_prices(settings),
        chance=random.Random(settings.seed),  # noqa: S311  a choice between equals
        new_lease_id=lambda: new_id("lse"),
        known_models=settings.prices,
        started_at=clock.monotonic(),
        demand_limits=settings.demand_limits(),
    )


def reconcile_limits(settings: SchedulerSettings) -> ReconcileLimits:
    """The bounds of comparing the ledger with itself."""
    idle_s = settings.ticket_ttl_s + settings.start_grace_s + settings.lost_grace_s + settings.reconcile_after_s
    return ReconcileLimits(
        patience=Patience(idle_s=idle_s, unseen_s=idle_s + settings.lease_max_s),
        interval_s=settings.reconcile_interval_s,
        blind_s=settings.reconcile_after_s / 2,
        lookback_s=settings.reconcile_lookback_s,
        max_pending=settings.reconcile_max_pending,
    )


def bindings(
    scheduler: Scheduler, store: LedgerStore, keeper: BudgetKeeper, *, scheduler_id: str, secret: bytes, clock: Clock
) -> list[Binding]:
    """Both gRPC services."""
    placing = SchedulerServicer(scheduler, scheduler_id=scheduler_id, secret=secret, clock=clock)
    reading = LedgerServicer(
        store,
        scheduler.brain,
        keeper=keeper,
        scheduler_id=scheduler_id,
        tokens=PageTokens(secret),
        timeline=Timeline(clock),
    )
    return [
        Binding(add_SchedulerServiceServicer_to_server, placing, _SCHEDULER),
        Binding(add_LedgerServiceServicer_to_server, reading, _LEDGER),
    ]


def _prices(settings: SchedulerSettings) -> PriceList:
    def price(tokens: TokenPrice) -> Price:
        return Price(
            version=settings.price_version,
            currency=settings.currency,
            input_nano=tokens.input_nano,
            cached_nano=tokens.cached_nano,
            output_nano=tokens.output_nano,
        )

    return PriceList({model: price(tokens) for model, tokens in settings.prices.items()}, price(settings.default_price))


def _authenticator(settings: SchedulerSettings, db: Database, clock: Clock) -> Authenticator:
    bootstrap = settings.bootstrap_admin_key
    keys = ApiKeyAuthenticator(
        db,
        pepper=settings.key_pepper.get_secret_value().encode(),
        cache=KeyCache(life_s=settings.key_cache_s, clock=clock),
        clock=clock,
        bootstrap_admin_key=bootstrap.get_secret_value() if bootstrap is not None else None,
    )
    return ChainAuthenticator([AssertionAuthenticator(settings.secret_bytes, clock), keys])
