"""Requests between the wire and the router's own types."""

from downstack.inference.v1 import inference_pb2 as inference_pb
from downstack.types.v1 import chat_pb2 as chat_pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.router.domain.facts import CallerEvent
from services.router.domain.request import GenerationSpec, Message, Retrieval, Sampling, Tool, ToolCall

_NANOS = 10**9
# The fields of SamplingParams that are scalars with presence; they have the same names on both sides.
_OPTIONAL = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty",
    "repetition_penalty", "seed", "n", "logprobs",
)  # fmt: skip
_CONSTRAINTS = ("json_schema", "regex")


def spec_of(spec: inference_pb.GenerationSpec) -> GenerationSpec:
    return GenerationSpec(
        model=spec.model,
        messages=tuple(_message_of(message) for message in spec.messages),
        prompt=spec.prompt,
        sampling=sampling_of(spec.sampling),
        retrieval=_retrieval_of(spec.retrieval) if spec.HasField("retrieval") else None,
        priority=spec.priority,
        conversation_id=spec.conversation_id,
        labels=dict(spec.labels),
        min_quality=spec.min_quality if spec.HasField("min_quality") else None,
        max_cost=spec.max_cost if spec.HasField("max_cost") else None,
        value=spec.value if spec.HasField("value") else None,
        tools=tuple(Tool(tool.name, tool.description, tool.parameters) for tool in spec.tools),
    )


def _message_of(message: chat_pb.Message) -> Message:
    return Message(
        role=message.role,
        content=message.content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
    )


def sampling_of(params: chat_pb.SamplingParams) -> Sampling:
    constraint = params.WhichOneof("constraint")
    return Sampling(
        **{name: getattr(params, name) for name in _OPTIONAL if params.HasField(name)},  # type: ignore[arg-type]
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        json_schema=params.json_schema if constraint == "json_schema" else None,
        regex=params.regex if constraint == "regex" else None,
    )


def sampling_to(sampling: Sampling) -> chat_pb.SamplingParams:
    """The parameters for a worker; what is unset stays unset, so that the worker applies the contract's default."""
    params = chat_pb.SamplingParams(
        stop=sampling.stop, stop_token_ids=sampling.stop_token_ids, ignore_eos=sampling.ignore_eos
    )
    for name in (*_OPTIONAL, *_CONSTRAINTS):
        value = getattr(sampling, name)
        if value is not None:
            setattr(params, name, value)
    return params


def caller_event_of(event: inference_pb.CallerEvent) -> CallerEvent:
    return CallerEvent(
        id=event.id,
        kind=event.kind,
        request_id=event.request_id,
        conversation_id=event.conversation_id,
        caller_time_ns=ns_of(event.occurred_at) if event.HasField("occurred_at") else None,
        attributes=event.attributes.SerializeToString(deterministic=True) if event.HasField("attributes") else b"",
    )


def ns_of(timestamp: Timestamp) -> int:
    """Nanoseconds since 1970, also where the timestamp itself is out of its range."""
    return timestamp.seconds * _NANOS + timestamp.nanos


def timestamp_to(ns: int) -> Timestamp:
    return Timestamp(seconds=ns // _NANOS, nanos=ns % _NANOS)


def _retrieval_of(retrieval: inference_pb.RetrievalSpec) -> Retrieval:
    return Retrieval(
        collections=tuple(retrieval.collections),
        query=retrieval.query,
        top_k=retrieval.top_k if retrieval.HasField("top_k") else None,
        budget_s=_seconds(retrieval.budget) if retrieval.HasField("budget") else None,
        required=retrieval.required,
    )


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / _NANOS
