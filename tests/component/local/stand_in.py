"""A small service for tests of the supervisor: `stand_in.py ADDRESS MODE`; serves gRPC health as real ones do."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    address, mode = sys.argv[1:]
    if mode == "broken":
        sys.stderr.write('{"level": "info", "event": "loading"}\n{"level": "error", "event": "no such model"}\n')
        sys.exit(3)
    if mode == "parent":
        subprocess.Popen(["sleep", "1000"])
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    assert server.add_insecure_port(address)
    server.start()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if mode == "stubborn" else stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
