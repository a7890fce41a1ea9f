"""Ask a service over gRPC whether it serves."""

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

_CALL_TIMEOUT_S = 2.0


async def is_serving(address: str) -> bool:
    """Whether the service at `address` says that it serves; False where nobody answers."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
