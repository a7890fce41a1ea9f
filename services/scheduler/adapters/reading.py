"""From protobuf messages to what the brain knows."""

from collections.abc import Iterable
from typing import TypeVar

from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.types.v1.usage_pb2 import FinishReason, TokenUsage
from downstack.types.v1.usage_pb2 import Price as PriceMessage
from google.protobuf.message import Message

from services.scheduler.adapters.timeline import Timeline
from services.scheduler.domain.kv import Change, Cleared, Delta, Removed, SnapshotPart, Stored
from services.scheduler.domain.lease import Grant, LeasePhase, LeaseState, Usage
from services.scheduler.domain.request import Offer, Price, Priority, Request
from services.scheduler.domain.stimuli import LeaseReleased, Leaving, Report, WorkerHello
from services.scheduler.domain.worker import Adapter, Load, Rates, WorkerSpec

_M = TypeVar("_M")
_PHASES = {
    pb.LEASE_PHASE_STARTED: LeasePhase.STARTED,
    pb.LEASE_PHASE_DECODING: LeasePhase.DECODING,
    pb.LEASE_PHASE_FINISHED: LeasePhase.FINISHED,
}
_PRIORITIES: dict[int, Priority] = {priority.value: priority for priority in Priority}
_ENDED_WELL = {FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH}


def request_of(message: pb.PlaceRequest, *, deadline_at: float) -> Request:
    """A request for a placement, as it was sent: whether it can be true is for the brain to say."""
    return Request(
        request_id=message.request_id,
        attempt=message.attempt,
        tenant_id=message.tenant_id,
        key_id=message.key_id,
        priority=_PRIORITIES.get(message.priority, Priority.STANDARD),
        offers=tuple(_offer_of(candidate) for candidate in message.candidates),
        max_output_tokens=message.max_output_tokens,
        cache_salt=message.cache_salt,
        excluded_workers=frozenset(message.excluded_workers),
        conversation_id=message.conversation_id,
        labels=dict(message.labels),
        value=_set(message, "value", message.value),
        max_cost=_set(message, "max_cost", message.max_cost),
        min_quality=_set(message, "min_quality", message.min_quality),
        retrieved_tokens=message.retrieved_tokens,
        answers=message.answers or 1,
        deadline_at=deadline_at,
    )


def _offer_of(message: pb.ModelCandidate) -> Offer:
    quality = _set(message, "predicted_quality", message.predicted_quality)
    return Offer(
        model=message.model,
        adapter=message.adapter,
        prompt_tokens=message.prompt_tokens,
        block_size=message.block_size,
        block_hashes=tuple(message.block_hashes),
        quality=1.0 if quality is None else quality,
        output_tokens=_set(message, "predicted_output_tokens", message.predicted_output_tokens),
    )


def released_of(message: pb.ReleaseRequest, *, tenant_id: str) -> LeaseReleased:
    return LeaseReleased(
        lease_id=message.lease_id,
        tenant_id=tenant_id,
        aborted=message.finish_reason not in _ENDED_WELL,
        unused=message.finish_reason == FinishReason.FINISH_REASON_UNUSED,
    )


def hello_of(message: pb.Hello, *, connection: int, timeline: Timeline) -> WorkerHello:
    return WorkerHello(
        connection=connection,
        worker_id=message.worker_id,
        epoch=message.epoch,
        endpoint=message.endpoint,
        spec=_spec_of(message.spec),
        leases=leases_of(message.leases, timeline=timeline),
    )


def report_of(message: pb.ConnectRequest, *, timeline: Timeline) -> Report | None:
    """What a connected worker says. None: nothing, or something newer than this scheduler."""
    match message.WhichOneof("message"):
        case "load":
            return _load_of(message.load)
        case "kv_delta":
            return _delta_of(message.kv_delta)
        case "kv_snapshot":
            part = message.kv_snapshot
            return SnapshotPart(epoch=part.epoch, sequence=part.sequence, hashes=tuple(part.hashes), last=part.last)
        case "leases":
            return leases_of(message.leases.leases, timeline=timeline)
        case "draining":
            return Leaving()
        case _:
            return None


def leases_of(messages: Iterable[pb.LeaseState], *, timeline: Timeline) -> tuple[LeaseState, ...]:
    """Lease reports; one without a phase says nothing."""
    return tuple(
        LeaseState(
            lease_id=message.lease_id,
            phase=_PHASES[message.phase],
            usage=usage_of(message.usage) if message.HasField("usage") else None,
            grant=grant_of(message.grant, timeline=timeline) if message.HasField("grant") else None,
        )
        for message in messages
        if message.phase in _PHASES and message.lease_id
    )


def grant_of(message: pb.LeaseGrant, *, timeline: Timeline) -> Grant:
    """A grant that a worker tells of, so that a restarted scheduler knows the lease again."""
    return Grant(
        lease_id=message.lease_id,
        request_id=message.request_id,
        attempt=message.attempt,
        tenant_id=message.tenant_id,
        key_id=message.key_id,
        worker_id=message.worker_id,
        worker_epoch=message.worker_epoch,
        model=message.model,
        requested_model=message.requested_model,
        adapter=message.adapter,
        cache_salt=message.cache_salt,
        prompt_tokens=message.prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        priority=_PRIORITIES.get(message.priority, Priority.STANDARD),
        conversation_id=message.conversation_id,
        labels=dict(message.labels),
        price=_price_of(message.price),
        granted_at=timeline.moment(message.granted_at),
        expires_at=timeline.moment(message.expires_at),
        queue_ms=message.queue_ms,
        predicted_cached_tokens=min(message.predicted_cached_tokens, message.prompt_tokens),
        retrieved_tokens=message.retrieved_tokens,
        answers=message.answers or 1,
        expected_output=message.expected_output_tokens,
        offered=tuple(message.offered_models),
    )


def usage_of(message: TokenUsage) -> Usage:
    return Usage(
        input_total=_set(message, "input_total", message.input_total),
        input_cached=_set(message, "input_cached", message.input_cached),
        output_total=_set(message, "output_total", message.output_total),
        reasoning=_set(message, "reasoning", message.reasoning),
        retrieved_context=_set(message, "retrieved_context", message.retrieved_context),
        output_delivered=_set(message, "output_delivered", message.output_delivered),
    )


def _price_of(message: PriceMessage) -> Price:
    return Price(
        version=message.version,
        currency=message.currency,
        input_nano=message.input_nano,
        cached_nano=message.cached_nano,
        output_nano=message.output_nano,
    )


def _spec_of(message: pb.WorkerSpec) -> WorkerSpec:
    return WorkerSpec(
        model=message.model,
        tokenizer_revision=message.tokenizer_revision,
        context_tokens=message.context_tokens,
        block_size=message.block_size,
        kv_blocks=message.kv_blocks,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        engine=message.engine,
        engine_version=message.engine_version,
        device_kind=message.device_kind,
        price_per_hour_nano=message.price_per_hour_nano,
        rates=_rates_of(message.rates),
        kv_events=message.kv_events,
        adapters=tuple(Adapter(name=each.name, id=each.id, rank=each.rank) for each in message.adapters),
    )


def _rates_of(message: pb.Rates) -> Rates:
    return Rates(
        prefill_base_ms=message.prefill_base_ms,
        prefill_ms_per_token=message.prefill_ms_per_token,
        decode_base_ms=message.decode_base_ms,
        decode_ms_per_request=message.decode_ms_per_request,
        prefill_ms_per_pair=message.prefill_ms_per_pair,
        decode_ms_per_context_token=message.decode_ms_per_context_token,
    )


def _load_of(message: pb.LoadReport) -> Load:
    return Load(
        running_requests=message.running_requests,
        waiting_requests=message.waiting_requests,
        kv_usage=message.kv_usage,
        steps=message.steps,
        generated_tokens=message.generated_tokens,
        serving=message.serving,
        rates=_rates_of(message.rates) if message.HasField("rates") else None,
        prefix_queries=message.prefix_queries,
        prefix_hits=message.prefix_hits,
    )


def _delta_of(message: pb.KvDelta) -> Delta:
    changes: list[Change] = []
    for change in message.changes:
        match change.WhichOneof("change"):
            case "stored":
                changes.append(Stored(tuple(change.stored.hashes)))
            case "removed":
                changes.append(Removed(tuple(change.removed.hashes)))
            case "cleared":
                changes.append(Cleared())
    return Delta(epoch=message.epoch, sequence=message.sequence, changes=tuple(changes))


def _set(message: Message, field: str, found: _M) -> _M | None:
    return found if message.HasField(field) else None
