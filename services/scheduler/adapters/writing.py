"""From what the brain knows to protobuf messages."""

from collections import Counter
from functools import lru_cache
from typing import cast

from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.types.v1.chat_pb2 import Priority
from downstack.types.v1.decision_pb2 import Candidate as CandidateMessage
from downstack.types.v1.decision_pb2 import Decision as DecisionMessage
from downstack.types.v1.usage_pb2 import Price as PriceMessage
from downstack.types.v1.usage_pb2 import TokenUsage
from google.protobuf.duration_pb2 import Duration

from services.scheduler.adapters.timeline import Timeline
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.decision import Decision
from services.scheduler.domain.instructions import Accept, Acknowledge, AskDrain, AskResync, Cancel, Close, ToWorker
from services.scheduler.domain.lease import Grant, Usage
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.record import Considered
from services.scheduler.domain.request import Price
from services.scheduler.domain.worker import Load, Rates, Worker, WorkerPhase, WorkerSpec

# A decision is written for its caller right after it was written for the journal.
_MAX_DECISIONS = 256

PHASES = {
    WorkerPhase.READY: pb.WORKER_PHASE_READY,
    WorkerPhase.UNHEALTHY: pb.WORKER_PHASE_UNHEALTHY,
    WorkerPhase.DRAINING: pb.WORKER_PHASE_DRAINING,
    WorkerPhase.LOST: pb.WORKER_PHASE_LOST,
}


def usage_message(usage: Usage) -> TokenUsage:
    return TokenUsage(
        input_total=usage.input_total,
        input_cached=usage.input_cached,
        output_total=usage.output_total,
        reasoning=usage.reasoning,
        retrieved_context=usage.retrieved_context,
        output_delivered=usage.output_delivered,
    )


def price_message(price: Price) -> PriceMessage:
    return PriceMessage(
        version=price.version,
        currency=price.currency,
        input_nano=price.input_nano,
        cached_nano=price.cached_nano,
        output_nano=price.output_nano,
    )


def grant_message(grant: Grant, *, timeline: Timeline) -> pb.LeaseGrant:
    """The grant as ticket and records carry it."""
    return pb.LeaseGrant(
        lease_id=grant.lease_id,
        request_id=grant.request_id,
        attempt=grant.attempt,
        tenant_id=grant.tenant_id,
        key_id=grant.key_id,
        worker_id=grant.worker_id,
        worker_epoch=grant.worker_epoch,
        model=grant.model,
        adapter=grant.adapter,
        cache_salt=grant.cache_salt,
        prompt_tokens=grant.prompt_tokens,
        max_output_tokens=grant.max_output_tokens,
        priority=grant.priority.value,  # type: ignore[arg-type]  # the numbers are the contract's
        conversation_id=grant.conversation_id,
        labels=grant.labels,
        price=price_message(grant.price),
        granted_at=timeline.stamp(grant.granted_at),
        expires_at=timeline.stamp(grant.expires_at),
        queue_ms=grant.queue_ms,
        predicted_cached_tokens=grant.predicted_cached_tokens,
        retrieved_tokens=grant.retrieved_tokens,
        requested_model=grant.requested_model,
        answers=grant.answers,
        expected_output_tokens=grant.expected_output,
        offered_models=grant.offered,
    )


@lru_cache(maxsize=_MAX_DECISIONS)
def decision_message(decision: Decision, *, scheduler_id: str, prices: PriceList) -> DecisionMessage:
    """The record for the caller and for the journal: the same message to both, so nobody may change it."""
    message = DecisionMessage(
        request_id=decision.request_id,
        attempt=decision.attempt,
        lease_id=decision.lease_id,
        model=decision.model,
        worker_id=decision.worker_id,
        policy=decision.policy,
        reason=decision.reason,
        prompt_tokens=decision.prompt_tokens,
        predicted_cached_tokens=decision.predicted_cached_tokens,
        queue_ms=decision.queue_ms,
        scheduler_id=scheduler_id,
        budget_warnings=decision.budget_warnings,
    )
    for considered in decision.candidates:
        _fill(message.candidates.add(), considered, prices.of(considered.model))
    return message


def _fill(message: CandidateMessage, considered: Considered, price: Price) -> None:
    """Field by field: with messages from keywords, a third of a decision's time would go into its 32 candidates."""
    message.worker_id = considered.worker_id
    message.model = considered.model
    message.cached_tokens = considered.cached_tokens
    message.ttft_ms = considered.ttft_ms
    message.total_ms = considered.total_ms
    if considered.score is not None:
        message.score = considered.score
    message.filtered_by = considered.filtered_by
    message.running_requests = considered.running_requests
    cost = message.cost
    cost.nano_units = considered.charge_nano
    cost.currency = price.currency
    cost.price_version = price.version


def order_message(order: ToWorker, *, scheduler_id: str, report_interval_s: float) -> pb.ConnectResponse:
    """What is sent to a worker."""
    match order:
        case Accept():
            interval = Duration()
            interval.FromMilliseconds(round(1000 * report_interval_s))
            return pb.ConnectResponse(welcome=pb.Welcome(scheduler_id=scheduler_id, report_interval=interval))
        case AskResync():
            return pb.ConnectResponse(resync=pb.Resync())
        case AskDrain():
            return pb.ConnectResponse(drain=pb.DrainWorker())
        case Cancel(_, lease_ids):
            return pb.ConnectResponse(cancel=pb.CancelLeases(lease_ids=lease_ids))
        case Acknowledge(_, lease_ids):
            return pb.ConnectResponse(acknowledge=pb.AcknowledgeLeases(lease_ids=lease_ids))
        case Close(_, error):
            raise error


def fleet_message(brain: Brain, *, scheduler_id: str, now: float, tenant_id: str = "") -> pb.Fleet:
    """The fleet as it is now, for everybody's eyes, or for those of a tenant."""
    workers = sorted(brain.fleet, key=lambda worker: worker.worker_id)
    wanted = brain.demand.replicas_wanted(now=now)
    return pb.Fleet(
        scheduler_id=scheduler_id,
        workers=[_worker_message(worker, brain) for worker in workers],
        queued=len(brain.queue),
        models=[
            pb.FleetModel(
                name=model,
                price=price_message(brain.prices.of(model)),
                ready_workers=sum(worker.ready for worker in brain.fleet.serving(model)),
                replicas_wanted=wanted.get(model, 0),
            )
            for model in brain.fleet.models()
        ],
        waiting=_waiting_messages(brain, tenant_id),
        spend=[
            pb.SpendRate(currency=currency, nano_units_per_hour=rate)
            for currency, rate in sorted(brain.spend.nano_per_hour(now=now).items())
            if not tenant_id
        ],
    )


def _waiting_messages(brain: Brain, tenant_id: str) -> list[pb.WaitingRequests]:
    """By class and tenant, the longest queue first."""
    counts = Counter((entry.request.priority, entry.request.tenant_id) for entry in brain.queue.entries())
    return [
        pb.WaitingRequests(priority=cast("Priority.ValueType", int(priority)), tenant_id=tenant, requests=count)
        for (priority, tenant), count in counts.most_common()
        if tenant_id in {"", tenant}
    ]


def _worker_message(worker: Worker, brain: Brain) -> pb.Worker:
    return pb.Worker(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        endpoint=worker.endpoint,
        spec=spec_message(worker.spec),
        phase=PHASES[worker.phase],
        load=_load_message(worker.load, worker.rates),
        leases=brain.book.count_of(worker.worker_id),
        indexed_blocks=brain.index.blocks_of(worker.worker_id),
        index_trusted=brain.index.trusted(worker.worker_id),
        kv_sequence=brain.index.position(worker.worker_id)[1],
    )


def spec_message(spec: WorkerSpec) -> pb.WorkerSpec:
    return pb.WorkerSpec(
        model=spec.model,
        tokenizer_revision=spec.tokenizer_revision,
        context_tokens=spec.context_tokens,
        block_size=spec.block_size,
        kv_blocks=spec.kv_blocks,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        engine=spec.engine,
        engine_version=spec.engine_version,
        device_kind=spec.device_kind,
        price_per_hour_nano=spec.price_per_hour_nano,
        rates=_rates_message(spec.rates),
        kv_events=spec.kv_events,
        adapters=[pb.Adapter(name=each.name, id=each.id, rank=each.rank) for each in spec.adapters],
    )


def _rates_message(rates: Rates) -> pb.Rates:
    return pb.Rates(
        prefill_base_ms=rates.prefill_base_ms,
        prefill_ms_per_token=rates.prefill_ms_per_token,
        decode_base_ms=rates.decode_base_ms,
        decode_ms_per_request=rates.decode_ms_per_request,
        prefill_ms_per_pair=rates.prefill_ms_per_pair,
        decode_ms_per_context_token=rates.decode_ms_per_context_token,
    )


def _load_message(load: Load, rates: Rates) -> pb.LoadReport:
    return pb.LoadReport(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage=load.kv_usage,
        steps=load.steps,
        generated_tokens=load.generated_tokens,
        serving=load.serving,
        rates=_rates_message(rates),
        prefix_queries=load.prefix_queries,
        prefix_hits=load.prefix_hits,
    )
