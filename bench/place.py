"""Measures Place calls over gRPC: a scheduler on one core, fake workers and callers in a process of their own.

The scheduler is the service without its database and broker: gRPC, identity, deadlines, decision, signed ticket. Its
decisions are written to a real outbox with --journal outbox, and kept in memory with --journal memory. Each lease is
reported as finished by its worker, and its new blocks as stored, as soon as its caller has it.

Prints one JSON line last.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import grpc.aio
import numpy as np
from downstack.scheduler.v1 import scheduler_pb2 as pb
from downstack.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub

from bench.placing.serve import SECRET
from services.kit.channel import open_channel
from services.kit.clock import SystemClock
from services.kit.identity import Identity, internal_metadata

_BLOCK = 16
_TENANT = "5d7c6d1e-0b0f-4c55-9f2e-2b3c4d5e6f70"
_SHARED_BLOCKS = 64
_WARM_UP_S = 3.0

Blocks = tuple[int, ...]


class FakeWorker:
    """A worker's stream: it says hello, and reports leases as finished."""

    def __init__(self, stub: SchedulerServiceStub, name: str) -> None:
        self.name = name
        self._call = stub.Connect(metadata=_metadata("worker", tenant=""))
        self._done: asyncio.Queue[tuple[str, Blocks]] = asyncio.Queue()
        self._stored: set[Blocks] = set()
        self._sequence = 0

    async def run(self, welcomed: asyncio.Event) -> None:
        spec = pb.WorkerSpec(
            model="m",
            context_tokens=1 << 20,
            block_size=_BLOCK,
            kv_blocks=1 << 20,
            max_num_seqs=64,
            kv_events=True,
            rates=pb.Rates(prefill_base_ms=5, prefill_ms_per_token=0.1, decode_base_ms=8, decode_ms_per_request=0.2),
        )
        await self._call.write(
            pb.ConnectRequest(hello=pb.Hello(worker_id=self.name, epoch="e", endpoint="w", spec=spec))
        )
        reader = asyncio.create_task(self._read(welcomed))
        try:
            while True:
                ended = [await self._done.get()]
                while not self._done.empty():
                    ended.append(self._done.get_nowait())
                await self._tell_blocks({blocks for _, blocks in ended} - self._stored)
                states = [pb.LeaseState(lease_id=each, phase=pb.LEASE_PHASE_FINISHED) for each, _ in ended]
                await self._call.write(pb.ConnectRequest(leases=pb.LeaseReport(leases=states)))
        finally:
            reader.cancel()
            self._call.cancel()

    async def _tell_blocks(self, stored: set[Blocks]) -> None:
        if not stored:
            return
        self._stored |= stored
        self._sequence += 1
        changes = [pb.KvChange(stored=pb.KvBlocks(hashes=blocks)) for blocks in stored]
        await self._call.write(
            pb.ConnectRequest(kv_delta=pb.KvDelta(epoch="kv", sequence=self._sequence, changes=changes))
        )

    async def _read(self, welcomed: asyncio.Event) -> None:
        with suppress(grpc.aio.AioRpcError):
            while (await self._call.read()) is not grpc.aio.EOF:
                welcomed.set()

    def finish(self, lease_id: str, blocks: Blocks) -> None:
        self._done.put_nowait((lease_id, blocks))


class Load:
    """Callers in a closed loop, each with one call open."""

    def __init__(self, stub: SchedulerServiceStub, workers: dict[str, FakeWorker], *, tokens: int, seed: int) -> None:
        self._stub = stub
        self._workers = workers
        self._tokens = tokens
        random = Random(seed)
        self._random = random
        shared = tuple(random.getrandbits(64) for _ in range(_SHARED_BLOCKS))
        rest = max(0, tokens // _BLOCK - _SHARED_BLOCKS)
        self._prompts = [
            (shared + tuple(random.getrandbits(64) for _ in range(rest)))[: tokens // _BLOCK] for _ in range(500)
        ]
        self._number = 0
        self.latencies_ns: list[int] = []

    async def call_until(self, deadline: float) -> None:
        metadata, renewed = _metadata("router", tenant=_TENANT), time.monotonic()
        while time.monotonic() < deadline:
            if time.monotonic() > renewed + 20:
                metadata, renewed = _metadata("router", tenant=_TENANT), time.monotonic()
            self._number += 1
            prompt = self._random.choice(self._prompts)
            candidate = pb.ModelCandidate(
                model="m",
                prompt_tokens=self._tokens,
                block_size=_BLOCK,
                block_hashes=prompt,
                predicted_output_tokens=128,
            )
            request = pb.PlaceRequest(
                request_id=f"req_{self._number}",
                attempt=1,
                tenant_id=_TENANT,
                candidates=[candidate],
                max_output_tokens=256,
            )
            began = time.perf_counter_ns()
            placed = await self._stub.Place(request, metadata=metadata, timeout=30)
            self.latencies_ns.append(time.perf_counter_ns() - began)
            self._workers[placed.decision.worker_id].finish(placed.lease_id, prompt)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Start a scheduler on a core of its own, and call it for a while."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        target, pid = await stack.enter_async_context(_scheduler(options.journal, Path(folder), core=cores[0]))
        channel = await stack.enter_async_context(open_channel(target))
        stub = SchedulerServiceStub(channel)
        workers = {name: FakeWorker(stub, name) for name in (f"wkr_{each:04}" for each in range(options.workers))}
        events = [asyncio.Event() for _ in workers]
        tasks = [asyncio.create_task(w.run(e)) for w, e in zip(workers.values(), events, strict=True)]
        await asyncio.gather(*(event.wait() for event in events))
        load = Load(stub, workers, tokens=options.prompt_tokens, seed=options.seed)
        await _drive(load, options.callers, _WARM_UP_S)
        load.latencies_ns.clear()
        cpu, began = cpu_s(pid), time.monotonic()
        await _drive(load, options.callers, options.seconds)
        took, used = time.monotonic() - began, cpu_s(pid) - cpu
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    calls = len(load.latencies_ns)
    return {
        "calls": calls,
        "calls_per_s": calls / took,
        "calls_per_cpu_s": calls / used,
        "server_cpu_share": used / took,
        "p50_ms": float(np.percentile(load.latencies_ns, 50)) / 1e6,
        "p99_ms": float(np.percentile(load.latencies_ns, 99)) / 1e6,
    }


async def _drive(load: Load, callers: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    await asyncio.gather(*(load.call_until(deadline) for _ in range(callers)))


class _Scheduler:
    """The serving process, from its start to its end."""

    def __init__(self, journal: str, folder: Path, core: int) -> None:
        self._arguments = ("-m", "bench.placing.serve", journal, str(folder / "outbox.db"), str(core))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> tuple[str, int]:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        target = (await self._process.stdout.readline()).decode().strip()
        return target, self._process.pid

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


def _scheduler(journal: str, folder: Path, *, core: int) -> _Scheduler:
    return _Scheduler(journal, folder, core)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _metadata(service: str, *, tenant: str) -> tuple[tuple[str, str], ...]:
    acting = Identity(tenant, "someone", (), frozenset(), "key00001") if tenant else None
    return internal_metadata(service, identity=acting, secret=SECRET, now=SystemClock().now())


def main() -> int:
    """Measures, and prints the figures as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.place", description=__doc__)
    parser.add_argument("--workers", type=int, default=100, help="fake workers connected (100)")
    parser.add_argument("--callers", type=int, default=32, help="calls open at one time (32)")
    parser.add_argument("--prompt-tokens", type=int, default=8_192, help="length of each prompt (8192)")
    parser.add_argument("--seconds", type=float, default=15.0, help="time measured (15)")
    parser.add_argument("--journal", choices=("memory", "outbox"), default="outbox", help="where decisions go (outbox)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts (1)")
    options = parser.parse_args()
    figures = asyncio.run(measure(options))
    machine = {
        "cores": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "grpc": grpc.__version__,
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }
    print(json.dumps({**figures, "shape": vars(options), "machine": machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
