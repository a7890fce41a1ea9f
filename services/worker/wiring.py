"""Where the worker's parts meet."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from downstack.smg.vllm_engine_pb2_grpc import add_VllmEngineServicer_to_server
from downstack.worker.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server

from services.kit.clock import Clock, SystemClock
from services.kit.errors import DownstackError, StartupError
from services.kit.events.journal import JournalError
from services.kit.events.outbox import Outbox
from services.kit.events.relay import Relay
from services.kit.identity import AssertionAuthenticator, internal_metadata
from services.kit.models import Tokenizer, model_folder
from services.kit.run import Binding, ServiceParts
from services.worker.adapters.adapter_files import AdapterFolder
from services.worker.adapters.remote.engine import RemoteEngine, RemoteSettings
from services.worker.adapters.remote.server import Metadata
from services.worker.adapters.scheduler_link import SchedulerLink
from services.worker.adapters.servicer import ACCESS, NAME, WorkerServicer
from services.worker.adapters.sim.engine import SimEngine, SimFaults, SimSettings
from services.worker.adapters.vllm_contract import servicer as vllm_contract
from services.worker.adapters.vllm_contract.model import ModelFiles
from services.worker.app.embedding import Embedding
from services.worker.app.engine_life import EngineLife, LifeLimits
from services.worker.app.outlet import OutletLimits
from services.worker.app.reports import WorkerIdentity
from services.worker.app.uplink import UplinkLimits
from services.worker.app.worker import Worker, WorkerLimits
from services.worker.domain.adapters import Adapter
from services.worker.domain.rates import Rates
from services.worker.domain.sim.core import Shape
from services.worker.ports import Engine
from services.worker.profiles import load_profile
from services.worker.settings import WorkerSettings

_SIM_KV_BLOCKS = 2048
_FLUSH_S = 1.0


@asynccontextmanager
async def wire(settings: WorkerSettings) -> AsyncIterator[ServiceParts]:
    """The worker of these settings; its engine starts with `ready`."""
    settings = _profiled(settings)
    clock = SystemClock()
    folder = model_folder(settings.model_path)
    tokenizer = Tokenizer.load(folder)
    life = EngineLife(engines(settings, tokenizer, clock=clock), limits=_life_limits(settings), clock=clock)
    try:
        async with _outbox(settings, clock=clock) as outbox:
            worker = Worker(life, _identity(settings, tokenizer), limits=_limits(settings), journal=outbox, clock=clock)
            relay = Relay(outbox, bootstrap=settings.kafka_bootstrap)
            embedding = _embedding(life, settings, tokenizer)
            parts = _parts(worker, settings, embedding=embedding, relay=relay, clock=clock)
            if settings.vllm_contract != "off":
                _add_contract(parts, worker, settings, ModelFiles.read(settings.model_path, tokenizer), clock=clock)
            yield parts
    finally:
        await life.stop()


def _parts(
    worker: Worker, settings: WorkerSettings, *, embedding: Embedding | None, relay: Relay, clock: Clock
) -> ServiceParts:
    secret = settings.secret_bytes
    model = model_folder(settings.model_path)
    folder = AdapterFolder(settings.adapter_folder, max_rank=settings.max_adapter_rank, model=model)
    servicer = WorkerServicer(worker, secret=secret, drain_s=settings.drain_s, adapters=folder, embedding=embedding)
    first = [_first_adapter(folder, name, path) for name, path in settings.first_adapters]
    links = [SchedulerLink(worker, target, secret=secret, clock=clock) for target in settings.schedulers]

    async def drain() -> None:
        await worker.drain(settings.drain_s)
        # What is left is durable, and the next start ships it; but that may be long in coming.
        await relay.flush(timeout_s=_FLUSH_S)

    return ServiceParts(
        bindings=[Binding(add_WorkerServiceServicer_to_server, servicer, NAME)],
        access=ACCESS,
        authenticator=AssertionAuthenticator(secret, clock),
        tasks=[worker.keep_engine, relay.run, *(link.run for link in links)],
        ready=lambda: worker.start(first),
        on_drain=drain,
        healthy=worker.healthy,
    )


def _add_contract(
    parts: ServiceParts, worker: Worker, settings: WorkerSettings, model: ModelFiles, *, clock: Clock
) -> None:
    """A second service beside the worker's own: vLLM's contract."""
    assert settings.vllm_contract != "off"
    contract = vllm_contract.ContractSettings(settings.vllm_contract, settings.vllm_contract_tenant)
    servicer = vllm_contract.VllmContractServicer(worker, model, settings=contract, clock=clock)
    parts.bindings = [*parts.bindings, Binding(add_VllmEngineServicer_to_server, servicer, vllm_contract.NAME)]
    parts.access = {**parts.access, **vllm_contract.contract_access(contract)}
    parts.endless = [*parts.endless, *vllm_contract.ENDLESS]


def _embedding(life: EngineLife, settings: WorkerSettings, tokenizer: Tokenizer) -> Embedding | None:
    if settings.task != "embed":
        return None
    return Embedding(life, encode=partial(tokenizer.encode, add_special_tokens=True), max_texts=settings.max_texts)


def _first_adapter(folder: AdapterFolder, name: str, path: Path) -> Adapter:
    try:
        return folder.read(name, path)
    except DownstackError as error:
        raise StartupError(f"The adapter {name!r} of the setting `adapters`: {error.message}") from error


@asynccontextmanager
async def _outbox(settings: WorkerSettings, *, clock: Clock) -> AsyncIterator[Outbox]:
    limits = {"max_events": settings.outbox_max_events, "max_bytes": settings.outbox_max_bytes}
    try:
        async with Outbox.open(settings.outbox_path, clock=clock, **limits) as outbox:
            yield outbox
    except JournalError as error:
        raise StartupError(str(error)) from None


def engines(settings: WorkerSettings, tokenizer: Tokenizer, *, clock: Clock) -> Callable[[], Engine]:
    """Makes one engine after another, each of which starts once."""
    if settings.engine == "sim":
        return lambda: SimEngine(_sim_settings(settings), tokenizer, clock=clock)
    if settings.engine == "remote":
        return lambda: RemoteEngine(_remote_settings(settings, clock=clock), tokenizer, clock=clock)
    # Not on top: the simulated engine runs where vLLM is not installed, and vLLM takes seconds to import.
    from services.worker.adapters.vllm.launch import vllm_engine  # noqa: PLC0415

    return lambda: vllm_engine(settings, tokenizer, rates=_rates(settings))


def _profiled(settings: WorkerSettings) -> WorkerSettings:
    """The settings with what their profile says wherever nothing was set."""
    if not settings.profile:
        return settings
    profile = load_profile(settings.profile)
    said = {
        **asdict(profile.shape),
        **asdict(profile.rates),
        "price_per_hour_nano": profile.price_per_hour_nano,
        "device_kind": profile.name,
    }
    return settings.model_copy(update={key: said[key] for key in said.keys() - settings.model_fields_set})


def _sim_settings(settings: WorkerSettings) -> SimSettings:
    shape = Shape(
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks or _SIM_KV_BLOCKS,
        context_tokens=settings.context_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
    )
    return SimSettings(
        shape=shape,
        rates=_rates(settings),
        model=settings.model,
        startup_s=settings.sim_startup_s,
        faults=SimFaults(
            crash_after_s=settings.sim_crash_after_s,
            hang_after_s=settings.sim_hang_after_s,
            slow_factor=settings.sim_slow_factor,
        ),
        mean_output_tokens=settings.sim_mean_output_tokens,
        embeds=settings.task == "embed",
    )


def _remote_settings(settings: WorkerSettings, *, clock: Clock) -> RemoteSettings:
    def metadata() -> Metadata:
        if not settings.remote_assertion:
            return ()
        return internal_metadata("worker", identity=None, secret=settings.secret_bytes, now=clock.now())

    return RemoteSettings(
        target=settings.remote_target,
        wait_s=settings.remote_wait_s,
        metadata=metadata,
        model=settings.model,
        context_tokens=settings.context_tokens,
        block_size=settings.block_size,
        kv_blocks=settings.kv_blocks,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        rates=_rates(settings),
    )


def _rates(settings: WorkerSettings) -> Rates:
    return Rates(
        prefill_base_ms=settings.prefill_base_ms,
        prefill_ms_per_token=settings.prefill_ms_per_token,
        decode_base_ms=settings.decode_base_ms,
        decode_ms_per_request=settings.decode_ms_per_request,
        prefill_ms_per_pair=settings.prefill_ms_per_pair,
        decode_ms_per_context_token=settings.decode_ms_per_context_token,
    )


def _identity(settings: WorkerSettings, tokenizer: Tokenizer) -> WorkerIdentity:
    return WorkerIdentity(
        worker_id=settings.name,
        endpoint=settings.endpoint,
        model=settings.model,
        tokenizer_revision=tokenizer.revision,
        device_kind=settings.device_kind,
        price_per_hour_nano=settings.price_per_hour_nano,
    )


def _life_limits(settings: WorkerSettings) -> LifeLimits:
    return LifeLimits(
        progress_s=settings.progress_s,
        longest_step_s=settings.longest_step_s,
        start_s=settings.engine_start_s,
        longest_pause_s=settings.longest_restart_pause_s,
        max_restarts=settings.max_restarts,
    )


def _limits(settings: WorkerSettings) -> WorkerLimits:
    return WorkerLimits(
        outlet=OutletLimits(
            flush_s=settings.flush_ms / 1000,
            longest_flush_s=settings.longest_flush_ms / 1000,
            stall_s=settings.stall_s,
            max_pending_tokens=settings.max_pending_tokens,
        ),
        uplink=UplinkLimits(report_s=settings.report_interval_s),
        max_leases=settings.max_leases,
        max_remembered=settings.max_remembered,
        needs_scheduler=bool(settings.schedulers),
        max_adapters=settings.max_adapters,
    )
