"""A worker and the router stream frames of the same wire form, so that a relay may pass them through unread."""

from downstack.inference.v1 import inference_pb2
from downstack.types.v1 import stream_pb2
from downstack.worker.v1 import worker_pb2
from google.protobuf.message import Message


def fields_of(message: type[Message]) -> dict[str, tuple[object, ...]]:
    """What decides the wire form: number, type and message type of each field by name."""
    return {
        field.name: (field.number, field.type, field.is_repeated, getattr(field.message_type, "full_name", ""))
        for field in message.DESCRIPTOR.fields
    }


def test_frames_have_the_same_fields() -> None:
    """Both GenerateResponse messages have the same field numbers and types."""
    ours, theirs = fields_of(inference_pb2.GenerateResponse), fields_of(worker_pb2.GenerateResponse)

    assert ours == theirs
    assert set(ours) == {"started", "delta", "finished", "sequence"}


def test_a_workers_frame_parses_as_the_routers() -> None:
    """The bytes of a worker's delta are the bytes of the router's."""
    delta = stream_pb2.Delta(text="Paris", token_ids=[7, 8], output_tokens=2, cached_tokens=64)
    sent = worker_pb2.GenerateResponse(delta=delta, sequence=3)

    received = inference_pb2.GenerateResponse.FromString(sent.SerializeToString())

    assert received.delta == delta
    assert received.sequence == 3
    assert received.SerializeToString() == sent.SerializeToString()
