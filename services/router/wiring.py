"""Where the router's parts meet."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc.aio
from downstack.admin.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from downstack.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

from services.kit.accounts.authenticator import ApiKeyAuthenticator
from services.kit.accounts.cache import KeyCache
from services.kit.accounts.store import AccountStore
from services.kit.channel import ChannelPool, open_channel
from services.kit.clock import SystemClock
from services.kit.errors import DownstackError
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.identity import Authenticator
from services.kit.pg.migrate import migrate
from services.kit.pg.pool import Database
from services.kit.run import Binding, ServiceParts
from services.router.adapters import admin_servicer, inference_servicer
from services.router.adapters.admin_servicer import AdminServicer
from services.router.adapters.audit import OutboxAudit
from services.router.adapters.fleet_watcher import FleetWatcher
from services.router.adapters.inference_servicer import InferenceServicer
from services.router.adapters.meters import PrometheusMeter
from services.router.adapters.prompt_models import LoadedModel
from services.router.adapters.retriever_client import RetrieverClient
from services.router.adapters.scheduler_client import SchedulerClient
from services.router.adapters.schedulers import Schedulers
from services.router.adapters.worker_client import WorkerClient
from services.router.app.accounting import Accounting
from services.router.app.administration import Administration
from services.router.app.generation import Generation
from services.router.app.preparation import Preparation
from services.router.app.router import Router
from services.router.app.slots import Slots
from services.router.ports import AuditPort, PromptModel
from services.router.settings import RouterSettings

CLOCK = SystemClock()
_PING_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Backends:
    """What the router calls: opened once, closed last."""

    schedulers: Mapping[str, grpc.aio.Channel]
    retriever: grpc.aio.Channel | None
    workers: ChannelPool


@asynccontextmanager
async def wire(settings: RouterSettings) -> AsyncIterator[ServiceParts]:
    """The whole router, over PostgreSQL, an outbox and Kafka."""
    if settings.postgres_owner_dsn is not None:
        await migrate(settings.postgres_owner_dsn.get_secret_value(), "services.kit.accounts")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        db = await enter(_database(settings))
        outbox = await enter(
            Outbox.open(
                settings.outbox_path, max_events=settings.outbox_max_events, max_bytes=settings.outbox_max_bytes
            )
        )
        audit = OutboxAudit(outbox, CLOCK)
        relay = Relay(outbox, bootstrap=settings.kafka_bootstrap)
        pepper = settings.key_pepper.get_secret_value().encode()
        administration = Administration(AccountStore(db, pepper=pepper, clock=CLOCK), audit)
        admin = AdminServicer(administration)
        authenticator = _authenticator(settings, db, pepper)
        parts = await enter(assemble(settings, authenticator=authenticator, audit=audit))
        fleet_seen = parts.ready

        async def ready() -> None:
            await _reachable(db)
            await fleet_seen()

        parts.bindings = (
            *parts.bindings,
            Binding(add_AdminServiceServicer_to_server, admin, admin_servicer.SERVICE),
        )
        parts.access = {**parts.access, **admin_servicer.ACCESS}
        parts.ready = ready
        parts.tasks = (*parts.tasks, relay.run)
        yield parts


@asynccontextmanager
async def assemble(
    settings: RouterSettings, *, authenticator: Authenticator, audit: AuditPort
) -> AsyncIterator[ServiceParts]:
    """The public API over whatever keeps the keys and the audit stream."""
    async with AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenizer"))
        models = await asyncio.to_thread(_load_models, settings, executor)
        backends = await stack.enter_async_context(_backends(settings))
        fleet = FleetWatcher(
            list(backends.schedulers.values()),
            secret=settings.secret_bytes,
            clock=CLOCK,
            interval_s=settings.fleet_interval_s,
        )
        router, accounting = _router(settings, backends, models=models, fleet=fleet, audit=audit)
        servicer = InferenceServicer(router, clock=CLOCK, default_deadline_s=settings.default_deadline_s)
        yield ServiceParts(
            bindings=(Binding(add_InferenceServiceServicer_to_server, servicer, inference_servicer.SERVICE),),
            access=inference_servicer.ACCESS,
            authenticator=authenticator,
            tasks=(fleet.run,),
            ready=fleet.first_view,
        )
        await accounting.drain()


def _router(
    settings: RouterSettings,
    backends: Backends,
    *,
    models: dict[str, PromptModel],
    fleet: FleetWatcher,
    audit: AuditPort,
) -> tuple[Router, Accounting]:
    secret, meter = settings.secret_bytes, PrometheusMeter()
    clients = {
        address: SchedulerClient(channel, secret=secret, clock=CLOCK, release_timeout_s=settings.release_timeout_s)
        for address, channel in backends.schedulers.items()
    }
    scheduler = Schedulers(
        clients, spread=settings.scheduler_spread, patience_s=settings.scheduler_patience_s, clock=CLOCK
    )
    accounting = Accounting(audit=audit, scheduler=scheduler, meter=meter, clock=CLOCK)
    retriever = RetrieverClient(backends.retriever, secret=secret, clock=CLOCK) if backends.retriever else None
    router = Router(
        preparation=Preparation(
            fleet=fleet,
            models=models,
            retriever=retriever,
            clock=CLOCK,
            secret=secret,
            retrieval_budget_s=settings.retrieval_budget_s,
        ),
        generation=Generation(
            scheduler=scheduler,
            workers=WorkerClient(backends.workers, secret=secret, clock=CLOCK),
            accounting=accounting,
            clock=CLOCK,
        ),
        accounting=accounting,
        audit=audit,
        ledger=scheduler,
        meter=meter,
        slots=Slots(settings.max_concurrent_requests),
        clock=CLOCK,
    )
    return router, accounting


@asynccontextmanager
async def _backends(settings: RouterSettings) -> AsyncIterator[Backends]:
    async with AsyncExitStack() as stack:
        # The router repeats by its own rules: a refusal is told at once, and a lost worker is left for another one.
        targets = settings.scheduler.split(",")
        schedulers = {target: await stack.enter_async_context(open_channel(target, attempts=1)) for target in targets}
        retriever = None
        if settings.retriever:
            retriever = await stack.enter_async_context(open_channel(settings.retriever, attempts=1))
        workers = await stack.enter_async_context(ChannelPool(limit=settings.worker_channels_max, attempts=1))
        yield Backends(schedulers=schedulers, retriever=retriever, workers=workers)


def _load_models(settings: RouterSettings, executor: ThreadPoolExecutor) -> dict[str, PromptModel]:
    return {
        name: LoadedModel.load(ref, executor=executor, offload_chars=settings.tokenizer_offload_chars)
        for name, ref in settings.models.items()
    }


async def _reachable(db: Database) -> None:
    while True:
        try:
            await db.ping()
        except DownstackError:
            await asyncio.sleep(_PING_PERIOD_S)
        else:
            return


def _database(settings: RouterSettings) -> AbstractAsyncContextManager[Database]:
    return Database.open(
        settings.postgres_dsn.get_secret_value(),
        pool_min=settings.pool_min,
        pool_max=settings.pool_max,
        acquire_timeout_s=settings.acquire_timeout_s,
    )


def _authenticator(settings: RouterSettings, db: Database, pepper: bytes) -> ApiKeyAuthenticator:
    bootstrap = settings.bootstrap_admin_key
    return ApiKeyAuthenticator(
        db,
        pepper=pepper,
        cache=KeyCache(life_s=settings.key_cache_s, clock=CLOCK),
        clock=CLOCK,
        bootstrap_admin_key=bootstrap.get_secret_value() if bootstrap else None,
    )
