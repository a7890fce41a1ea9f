"""Answers, counts and placements between the wire and the router's own types."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar, cast

from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.types.v1 import decision_pb2 as decision_pb
from downstack.types.v1 import stream_pb2 as stream_pb
from downstack.types.v1 import usage_pb2 as usage_pb
from google.protobuf.message import Message as WireMessage

from services.router.adapters.wire_request import timestamp_to
from services.router.app.generation import AnswerFinished, AnswerFrame, AnswerStarted
from services.router.domain.explanation import Attempt, Billed
from services.router.domain.models import ServedModel
from services.router.domain.outcome import Cost, FinishReason, Price, Timings, Usage
from services.router.domain.prompt import Passage
from services.router.ports import DeltaFrame, FinishedFrame, StartedFrame, WorkerFrame

Counts = TypeVar("Counts", Usage, Timings)


def frame_of(response: inference_pb.GenerateResponse) -> WorkerFrame:
    """A worker's frame; it has the wire form of the router's own."""
    kind = response.WhichOneof("frame")
    if kind == "delta":
        delta = response.delta
        return DeltaFrame(
            output_tokens=delta.output_tokens,
            cached_tokens=delta.cached_tokens if delta.HasField("cached_tokens") else None,
            wire=response,
        )
    if kind == "finished":
        finished = response.finished
        return FinishedFrame(
            sequence=response.sequence,
            finish_reason=finish_reason_of(finished.finish_reason),
            usage=usage_of(finished.usage),
            cost=cost_of(finished.cost) if finished.HasField("cost") else None,
            timings=timings_of(finished.timings),
        )
    started = response.started
    return StartedFrame(cached_tokens=started.cached_tokens if started.HasField("cached_tokens") else None)


def frame_to(frame: AnswerFrame) -> inference_pb.GenerateResponse:
    if isinstance(frame, DeltaFrame):
        return cast("inference_pb.GenerateResponse", frame.wire)
    if isinstance(frame, AnswerFinished):
        return inference_pb.GenerateResponse(finished=_finished_to(frame), sequence=frame.sequence)
    return inference_pb.GenerateResponse(started=started_to(frame), sequence=0)


def started_to(started: AnswerStarted) -> stream_pb.Started:
    placement = started.placement
    wire = stream_pb.Started(
        request_id=started.request_id,
        model=placement.model,
        worker_id=placement.worker_id,
        decision=cast("decision_pb.Decision", placement.record),
        citations=[_citation_to(passage) for passage in started.passages],
        prompt_tokens=started.prompt_tokens,
        lease_id=placement.lease_id,
        retrieval_degraded=started.retrieval_degraded,
    )
    if started.cached_tokens is not None:
        wire.cached_tokens = started.cached_tokens
    return wire


def _finished_to(finished: AnswerFinished) -> stream_pb.Finished:
    return stream_pb.Finished(
        finish_reason=finish_reason_to(finished.finish_reason),
        usage=usage_to(finished.usage),
        cost=cost_to(finished.cost),
        timings=timings_to(finished.timings),
    )


def finish_reason_of(value: int) -> FinishReason:
    """A reason that a newer worker invented is unspecified here."""
    return FinishReason(value) if value in set(FinishReason) else FinishReason.UNSPECIFIED


def finish_reason_to(reason: FinishReason) -> usage_pb.FinishReason.ValueType:
    return cast("usage_pb.FinishReason.ValueType", reason.value)


def usage_of(wire: usage_pb.TokenUsage) -> Usage:
    return _present(Usage, wire)


def usage_to(usage: Usage) -> usage_pb.TokenUsage:
    return _filled(usage_pb.TokenUsage(), usage)


def timings_of(wire: usage_pb.Timings) -> Timings:
    return _present(Timings, wire)


def timings_to(timings: Timings) -> usage_pb.Timings:
    return _filled(usage_pb.Timings(), timings)


def cost_of(wire: usage_pb.Cost) -> Cost:
    return Cost(nano_units=wire.nano_units, currency=wire.currency, price_version=wire.price_version)


def cost_to(cost: Cost | None) -> usage_pb.Cost | None:
    if cost is None:
        return None
    return usage_pb.Cost(nano_units=cost.nano_units, currency=cost.currency, price_version=cost.price_version)


def price_of(wire: usage_pb.Price) -> Price:
    return Price(
        version=wire.version,
        currency=wire.currency,
        input_nano=wire.input_nano,
        cached_nano=wire.cached_nano,
        output_nano=wire.output_nano,
    )


def passage_of(wire: stream_pb.Citation) -> Passage:
    return Passage(
        collection=wire.collection,
        document_id=wire.document_id,
        version=wire.version,
        title=wire.title,
        uri=wire.uri,
        start=wire.start,
        end=wire.end,
        score=wire.score,
        text=wire.text,
    )


def model_to(model: ServedModel) -> inference_pb.Model:
    price = model.price
    return inference_pb.Model(
        name=model.name,
        context_tokens=model.context_tokens,
        workers=model.ready_workers,
        engine=model.engine,
        base=model.model if model.adapter else "",
        price=None
        if price is None
        else usage_pb.Price(
            version=price.version,
            currency=price.currency,
            input_nano=price.input_nano,
            cached_nano=price.cached_nano,
            output_nano=price.output_nano,
        ),
    )


def attempts_to(request_id: str, attempts: Sequence[Attempt]) -> inference_pb.ExplainRequestResponse:
    return inference_pb.ExplainRequestResponse(
        request_id=request_id, attempts=[_attempt_to(request_id, attempt) for attempt in attempts]
    )


def _attempt_to(request_id: str, attempt: Attempt) -> inference_pb.Attempt:
    wire = inference_pb.Attempt()
    if attempt.placed is not None:
        wire.decision.CopyFrom(cast("decision_pb.Decision", attempt.placed.record))
        wire.decided_at.CopyFrom(timestamp_to(attempt.placed.decided_at_ns))
    elif attempt.billed is not None:
        wire.decision.CopyFrom(_decision_of(request_id, attempt.billed))
    if attempt.billed is not None:
        wire.finish_reason = finish_reason_to(attempt.billed.finish_reason)
        wire.usage.CopyFrom(usage_to(attempt.billed.usage))
        wire.timings.CopyFrom(timings_to(attempt.billed.timings))
        cost = cost_to(attempt.billed.cost)
        if cost is not None:
            wire.cost.CopyFrom(cost)
    return wire


def _decision_of(request_id: str, billed: Billed) -> decision_pb.Decision:
    """What a row alone says of the placement, until the decision arrives."""
    return decision_pb.Decision(
        request_id=request_id,
        attempt=billed.attempt,
        lease_id=billed.lease_id,
        model=billed.model,
        worker_id=billed.worker_id,
    )


def _citation_to(passage: Passage) -> stream_pb.Citation:
    return stream_pb.Citation(
        mark=passage.mark,
        collection=passage.collection,
        document_id=passage.document_id,
        version=passage.version,
        title=passage.title,
        uri=passage.uri,
        start=passage.start,
        end=passage.end,
        score=passage.score,
        text=passage.text,
    )


def _present(kind: type[Counts], wire: WireMessage) -> Counts:
    """The fields that are set; they have the same names on both sides."""
    return kind(**{f.name: getattr(wire, f.name) for f in fields(kind) if wire.HasField(f.name)})


Filled = TypeVar("Filled", usage_pb.TokenUsage, usage_pb.Timings)


def _filled(wire: Filled, counts: Usage | Timings) -> Filled:
    for field in fields(counts):
        value = getattr(counts, field.name)
        if value is not None:
            setattr(wire, field.name, value)
    return wire
