"""Server reflection, v1alpha and v1: what grpcurl, ghz, buf and k6 learn the contracts from.

grpcio-reflection serves v1alpha only. The two versions have the same wire form, so v1 is the same servicer under the
other name. Clients also ask for the descriptor of the reflection service itself, so that is made from v1alpha's.
"""

from collections.abc import Iterable

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_V1_FILE = "grpc/reflection/v1/reflection.proto"


def add_to_server(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Serves the descriptors of these services (fully-qualified names) and of reflection itself."""
    _register_v1()
    servicer = reflection.aio.ReflectionServicer([*services, *NAMES])
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]
    )


def _register_v1() -> None:
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        renamed = text_format.MessageToString(alpha).replace("v1alpha", "v1")
        pool.AddSerializedFile(text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto()).SerializeToString())
