"""What a worker says of itself, in the contract's messages."""

from collections.abc import Iterable
from dataclasses import dataclass

from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.scheduler.v1.scheduler_pb2 import LeaseGrant, LeasePhase, LeaseState, LoadReport, Rates, WorkerSpec

from services.worker.app.accounts import token_usage
from services.worker.domain.adapters import Adapter
from services.worker.domain.leases import Grant, Lease, Phase
from services.worker.ports import Engine

_PHASES = {
    Phase.STARTED: LeasePhase.LEASE_PHASE_STARTED,
    Phase.DECODING: LeasePhase.LEASE_PHASE_DECODING,
    Phase.FINISHED: LeasePhase.LEASE_PHASE_FINISHED,
}


@dataclass(frozen=True)
class WorkerIdentity:
    """What a worker calls itself.

    Attributes:
        worker_id: Its name across restarts.
        endpoint: Where callers reach it, host:port.
        price_per_hour_nano: What an hour of it costs, in 1e-9 of the currency's unit.
    """

    worker_id: str
    endpoint: str
    model: str
    tokenizer_revision: str
    device_kind: str
    price_per_hour_nano: int


def spec_of(identity: WorkerIdentity, engine: Engine, *, adapters: Iterable[Adapter]) -> WorkerSpec:
    """What a worker is, and the adapters that it offers."""
    spec = engine.spec
    return WorkerSpec(
        model=identity.model,
        tokenizer_revision=identity.tokenizer_revision,
        context_tokens=spec.context_tokens,
        block_size=spec.block_size,
        kv_blocks=spec.kv_blocks,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        engine=spec.engine,
        engine_version=spec.engine_version,
        device_kind=identity.device_kind,
        price_per_hour_nano=identity.price_per_hour_nano,
        rates=_rates_of(engine),
        kv_events=spec.kv_events,
        adapters=[adapter_of(adapter) for adapter in adapters],
    )


def adapter_of(adapter: Adapter) -> pb.Adapter:
    """An adapter, for those who place."""
    return pb.Adapter(name=adapter.name, id=adapter.id, rank=adapter.rank)


def load_of(engine: Engine, *, serving: bool) -> LoadReport:
    """How busy it is."""
    stats = engine.stats()
    return LoadReport(
        running_requests=stats.running,
        waiting_requests=stats.waiting,
        kv_usage=stats.kv_usage,
        steps=stats.steps,
        generated_tokens=stats.generated_tokens,
        serving=serving,
        rates=_rates_of(engine),
        prefix_queries=stats.prefix_queries,
        prefix_hits=stats.prefix_hits,
    )


def state_of(lease: Lease, grant: LeaseGrant | None) -> LeaseState:
    """Where a lease stands."""
    return LeaseState(lease_id=lease.lease_id, phase=_PHASES[lease.phase], usage=token_usage(lease.counts), grant=grant)


def grant_of(grant: LeaseGrant) -> Grant:
    """What the worker's decisions need of a ticket."""
    return Grant(
        lease_id=grant.lease_id,
        worker_id=grant.worker_id,
        worker_epoch=grant.worker_epoch,
        model=grant.model,
        adapter=grant.adapter,
        prompt_tokens=grant.prompt_tokens,
        max_output_tokens=grant.max_output_tokens,
        expires_at=grant.expires_at.ToNanoseconds() / 1e9,
    )


def _rates_of(engine: Engine) -> Rates:
    rates = engine.rates()
    return Rates(
        prefill_base_ms=rates.prefill_base_ms,
        prefill_ms_per_token=rates.prefill_ms_per_token,
        decode_base_ms=rates.decode_base_ms,
        decode_ms_per_request=rates.decode_ms_per_request,
        prefill_ms_per_pair=rates.prefill_ms_per_pair,
        decode_ms_per_context_token=rates.decode_ms_per_context_token,
    )
