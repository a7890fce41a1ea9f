"""Measures the scheduler's brain: from a request's arrival to its lease, decision record included.

Between two decisions the fleet goes on as it would: one worker reports its load and fitted rates, the worker that got
the last lease reports it as decoding, and its blocks as stored and evicted again, the oldest lease ends, and time
passes. None of that is measured as part of a decision, but what it leaves to be renewed is.
"""

import gc
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

from services.kit.ids import new_id
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.cost import DEFAULT_OBJECTIVES
from services.scheduler.domain.instructions import Place
from services.scheduler.domain.kv import Delta, Removed, Stored
from services.scheduler.domain.lease import Grant, LeasePhase, LeaseState, Usage
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.policies.registry import policies
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Offer, Price, Request
from services.scheduler.domain.stimuli import PlaceRequested, Report, Tick, WorkerHello, WorkerReported
from services.scheduler.domain.worker import Load, Rates, WorkerSpec

_HELD = 4  # leases that each worker runs, on average
_PER_WORKER_S = 1.0  # decisions per second and worker, and load reports too
_WARM_UP = 200
_OUTPUT = 128
_PRICE = Price(version="1", currency="USD", input_nano=150, cached_nano=75, output_nano=600)


class Fleet:
    """A brain, and workers that say what workers say."""

    def __init__(self, workers: int, block_size: int) -> None:
        self.random = Random(1)
        self.now = 1_000.0
        self.brain = Brain(
            limits=Limits(max_workers=max(1_024, workers), settle_s=0.0),
            policy=policies(DEFAULT_OBJECTIVES, value=1.0)["worth"](),
            prices=PriceList({}, _PRICE),
            chance=self.random,
            new_lease_id=lambda: new_id("lse"),
            started_at=self.now,
        )
        self._workers = workers
        self._sequences = [0] * workers
        self._speaks = itertools.cycle(range(workers))
        self._held: deque[Grant] = deque()
        self._step_s = 1 / (_PER_WORKER_S * workers)
        self._tick_at = self.now
        self.ticks_us: list[float] = []
        for number in range(workers):
            self._hello(number, block_size)

    def _hello(self, number: int, block_size: int) -> None:
        spec = WorkerSpec(
            model="m",
            context_tokens=1 << 20,
            block_size=block_size,
            kv_blocks=1 << 20,
            max_num_seqs=64,
            price_per_hour_nano=2 * 10**9,
            kv_events=True,
        )
        hello = WorkerHello(
            connection=number, worker_id=f"wkr_{number:04}", epoch="e", endpoint=f"10.0.0.1:{number}", spec=spec
        )
        self.brain.apply(hello, self.now)

    def say(self, number: int, report: Report) -> None:
        self.brain.apply(WorkerReported(number, f"wkr_{number:04}", report), self.now)

    def store(self, number: int, hashes: np.ndarray, *, kept: bool = True) -> None:
        """Report blocks as stored, and as evicted again unless they are kept."""
        blocks = tuple(hashes.tolist())
        self._sequences[number] += 1
        changes = (Stored(blocks),) if kept else (Stored(blocks), Removed(blocks))
        self.say(number, Delta(epoch="kv", sequence=self._sequences[number], changes=changes))

    def go_on(self, placed: Place, hashes: np.ndarray) -> None:
        """What happens until the next decision."""
        grant = placed.grant
        number = int(grant.worker_id[4:])
        resident = self.brain.index.resident(grant.worker_id)
        self.store(number, np.array([each for each in hashes.tolist() if each not in resident], np.uint64), kept=False)
        self.say(number, (LeaseState(lease_id=grant.lease_id, phase=LeasePhase.DECODING),))
        self._held.append(grant)
        if len(self._held) > _HELD * self._workers:
            ended = self._held.popleft()
            usage = Usage(input_total=ended.prompt_tokens, output_total=_OUTPUT)
            state = LeaseState(lease_id=ended.lease_id, phase=LeasePhase.FINISHED, usage=usage)
            self.say(int(ended.worker_id[4:]), (state,))
        self.say(next(self._speaks), Load(running_requests=_HELD, kv_usage=0.5, rates=self._rates()))
        self.now += self._step_s
        if self.now >= self._tick_at:
            self._tick_at = self.now + 0.1
            began = time.perf_counter_ns()
            self.brain.apply(Tick(), self.now)
            self.ticks_us.append((time.perf_counter_ns() - began) / 1000)

    def _rates(self) -> Rates:
        return Rates(
            prefill_base_ms=5.0,
            prefill_ms_per_token=self.random.uniform(0.09, 0.11),
            decode_base_ms=self.random.uniform(8, 9),
            decode_ms_per_request=0.2,
        )


def main(path: Path) -> None:
    data = np.load(path)
    workers, hot, block_size = data["numbers"].tolist()
    chains, owners, prompts = data["chain_hashes"], data["owners"], data["prompt_hashes"]
    tokens = prompts.shape[1] * block_size
    fleet = Fleet(workers, block_size)
    gc.collect()
    before = resident_bytes()
    blocks = fill(fleet, chains, owners, hot)
    gc.collect()
    grown = resident_bytes() - before
    requests = asked(prompts, tokens, fleet)
    fill_batches(fleet, prompts, requests, count=_HELD * workers + _WARM_UP)
    fleet.ticks_us.clear()
    walls, cpus, walks = [], [], []
    for hashes in prompts:
        request = next(requests)
        began, began_cpu = time.perf_counter_ns(), time.thread_time_ns()
        (placed,) = fleet.brain.apply(PlaceRequested(0, request), fleet.now)
        cpus.append(time.thread_time_ns() - began_cpu)
        walls.append(time.perf_counter_ns() - began)
        began = time.perf_counter_ns()
        fleet.brain.index.depths(request.offers[0].block_hashes)
        walks.append(time.perf_counter_ns() - began)
        assert isinstance(placed, Place)
        fleet.go_on(placed, hashes)
    print(
        json.dumps(
            {
                **spread("", walls),
                "bytes_per_block": grown / blocks,
                "bytes_per_block_stated": fleet.brain.index.memory_bytes() / blocks,
                **spread("cpu_", cpus),
                **spread("lookup_", walks),
                "tick_p50_us": float(np.percentile(fleet.ticks_us, 50)) if fleet.ticks_us else None,
                "decisions": len(walls),
                "leases": len(fleet.brain.book),
            }
        )
    )


def fill(fleet: Fleet, chains: np.ndarray, owners: np.ndarray, hot: int) -> int:
    """Let every worker report its blocks. Returns how many they are."""
    for number in range(fleet.brain.limits.max_workers):
        if fleet.brain.fleet.get(f"wkr_{number:04}") is None:
            break
        fleet.store(number, chains[0, :hot])
    for chain, holders in zip(chains, owners.tolist(), strict=True):
        for number in holders:
            fleet.store(number, chain[hot:])
    return sum(fleet.brain.index.blocks_of(worker.worker_id) for worker in fleet.brain.fleet)


def asked(prompts: np.ndarray, tokens: int, fleet: Fleet) -> Iterator[Request]:
    """Requests with integers of their own, as a message has them; the prompts over and over."""
    block_size = tokens // prompts.shape[1]
    for number in itertools.count():
        hashes = tuple(prompts[number % len(prompts)].tolist())
        offer = Offer(
            model="m", prompt_tokens=tokens, block_size=block_size, block_hashes=hashes, output_tokens=_OUTPUT
        )
        yield Request(
            request_id=f"req_{number}",
            attempt=1,
            tenant_id=f"tenant_{number % 50}",
            offers=(offer,),
            max_output_tokens=2 * _OUTPUT,
            deadline_at=fleet.now + 60,
            labels={},
        )


def fill_batches(fleet: Fleet, prompts: np.ndarray, requests: Iterator[Request], *, count: int) -> None:
    """Decide until the fleet is as busy as it will be. Ends at the last prompt, so that the first comes next."""
    count += -count % len(prompts)
    for number in range(count):
        (placed,) = fleet.brain.apply(PlaceRequested(0, next(requests)), fleet.now)
        assert isinstance(placed, Place)
        fleet.go_on(placed, prompts[number % len(prompts)])


def spread(name: str, ns: list[int]) -> dict[str, float]:
    return {f"{name}p{share}_us": float(np.percentile(ns, share)) / 1000 for share in (50, 99)}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


if __name__ == "__main__":
    main(Path(sys.argv[1]))
