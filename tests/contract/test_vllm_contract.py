"""The part of vLLM's gRPC contract that is declared here, held against the whole one."""

from collections.abc import Iterator
from pathlib import Path

from downstack.smg import common_pb2, vllm_engine_pb2
from google.protobuf import descriptor_pb2

_WHOLE = Path(__file__).with_name("smg_grpc_proto_0.4.28.txt")
_KINDS = {
    number: name.removeprefix("TYPE_").lower() for name, number in descriptor_pb2.FieldDescriptorProto.Type.items()
}


def lines_of(module: object) -> Iterator[str]:
    """Every field, enum value and method of a file, one a line."""
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)  # type: ignore[attr-defined]
    for message in file.message_type:
        yield from fields_of(message, file.package)
    for enum in file.enum_type:
        yield from (f"{file.package}.{enum.name}.{value.name} {value.number}" for value in enum.value)
    for service in file.service:
        for method in service.method:
            stream = " stream" if method.server_streaming else ""
            name = f"{file.package}.{service.name}.{method.name}()"
            yield f"{name} {method.input_type[1:]} {method.output_type[1:]}{stream}"


def fields_of(message: descriptor_pb2.DescriptorProto, prefix: str) -> Iterator[str]:
    name = f"{prefix}.{message.name}"
    for field in message.field:
        kind = field.type_name.lstrip(".") or _KINDS[field.type]
        repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
        label = "repeated" if repeated else "optional" if field.proto3_optional else "plain"
        yield f"{name}.{field.name} {field.number} {kind} {label}"
    for nested in message.nested_type:
        yield from fields_of(nested, name)


def test_every_name_and_number_is_that_of_the_package() -> None:
    """Names, numbers, kinds and methods: each is in the whole contract, so both sides mean the same bytes."""
    whole = set(_WHOLE.read_text().splitlines())
    ours = [*lines_of(vllm_engine_pb2), *lines_of(common_pb2)]
    assert len(ours) > 150
    assert [line for line in ours if line not in whole] == []


def test_what_is_left_out_of_a_request_cannot_change_its_meaning() -> None:
    """Whatever a request can ask for is declared, so that it is honoured or refused, and never overlooked."""
    whole = _WHOLE.read_text().splitlines()
    ours = set(lines_of(vllm_engine_pb2))
    asked = [line for line in whole if line.split(".")[3] in {"GenerateRequest", "SamplingParams"}]
    assert len(asked) > 35
    assert [line for line in asked if line not in ours] == []
