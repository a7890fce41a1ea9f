"""A health probe: `python -m services.kit.probe HOST:PORT [--service NAME]` exits 0 if the service is SERVING."""

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main() -> None:
    """Asks once. Exits 0 if SERVING, 1 if not, 2 if nobody answers."""
    parser = argparse.ArgumentParser(description="Exits 0 if a service reports SERVING, 1 if not, 2 without an answer.")
    parser.add_argument("target", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="a fully-qualified service name; empty: the whole process")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for the answer")
    options = parser.parse_args()
    raise SystemExit(_probe(options.target, service=options.service, timeout_s=options.timeout))


def _probe(target: str, *, service: str, timeout_s: float) -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as error:
            sys.stderr.write(f"{target}: {error.code().name}: {error.details()}\n")
            return 2
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    sys.stdout.write(f"{status}\n")
    return 0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    main()
