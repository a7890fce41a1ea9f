"""Server reflection, v1alpha and v1: what grpcurl, ghz, buf and k6 learn the contracts from.

grpcio-reflection serves v1alpha only. The two versions have the same wire form, so v1 is the same servicer under the
other name. Clients also ask for the descriptor of the reflection service itself, so that is made from v1alpha's.
"""

from collections.abc import Iterable
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_V1_FILE = "grpc/reflection/v1/reflection.proto"


def add_to_server(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Serves the descriptors of these services (fully-qualified names) and of reflection itself."""
    _register_v1()
    servicer = reflection.aio.ReflectionServicer([*services, *NAMES], _Symbols())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}) for name in NAMES]
    )


class _Symbols:
    """The default pool as reflection reads it, with methods: the pool itself does not find the file of a method."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  the name is the pool's
        """The file that declares the symbol; KeyError if there is none."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            return self._pool.FindServiceByName(service).methods_by_name[method].containing_service.file


def _register_v1() -> None:
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        alpha = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
        renamed = text_format.MessageToString(alpha).replace("v1alpha", "v1")
        pool.AddSerializedFile(text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto()).SerializeToString())
