"""How fast the simulated engine simulates: a trace on a fleet in virtual time, engines only, without a scheduler.

Prints one JSON line last.
"""

import argparse
import cProfile
import heapq
import itertools
import json
import platform
import pstats
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from downstack.replay.trace import BLOCK_TOKENS, Arrival, TraceError, TraceFormat, read_trace

from services.kit.errors import StartupError
from services.worker.domain.mirror import Removed, Stored
from services.worker.domain.sim.sequence import SimSequence
from services.worker.domain.sim.virtual import StepDone, VirtualEngine
from services.worker.profiles import Profile, load_profile

_DISPATCH = ("affinity", "round-robin")
_SLACK = 4


@dataclass
class Outcome:
    """What the fleet did.

    Attributes:
        ttft_s: From arrival to first token, of each request.
        ended_at: Virtual time of the last end.
    """

    ttft_s: list[float] = field(default_factory=list)
    ended: int = 0
    ended_at: float = 0.0
    steps: int = 0
    told: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    blocks_stored: int = 0
    blocks_removed: int = 0

    def take(self, step: StepDone, arrived: dict[str, float]) -> None:
        """Takes in what an engine told."""
        self.told += 1
        self.steps += step.steps
        self.output_tokens += step.output_tokens
        self.preemptions += len(step.preempted)
        self.cached_tokens += sum(one.cached_tokens for one in step.admitted)
        self.ttft_s += [step.ended_at - arrived[key] for key in step.first_tokens]
        if step.ended:
            self.ended += len(step.ended)
            self.ended_at = max(self.ended_at, step.ended_at)
        for change in step.changes:
            match change:
                case Stored(hashes):
                    self.blocks_stored += len(hashes)
                case Removed(hashes):
                    self.blocks_removed += len(hashes)


def main() -> int:
    """Simulates, and prints what was simulated and how long that took."""
    options = _options()
    try:
        arrivals = read_trace(options.trace, TraceFormat.MOONCAKE, limit=options.requests)
        profile = load_profile(options.profile)
    except (TraceError, StartupError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.block_size:
        profile = _with_blocks_of(profile, options.block_size)
    kept = [one for one in arrivals if one.prompt_tokens < profile.shape.context_tokens]
    engines = [VirtualEngine(profile.shape, profile.rates, ahead=options.ahead) for _ in range(options.workers)]
    choose = _affinity(engines) if options.dispatch == "affinity" else _round_robin(engines)
    profiler = cProfile.Profile() if options.profile_calls else None
    began, cpu_began = time.perf_counter(), time.process_time()
    if profiler:
        profiler.enable()
    outcome = simulate(kept, engines, choose, speed=options.speed, block_size=profile.shape.block_size)
    if profiler:
        profiler.disable()
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    figures = _figures(outcome, len(kept), seconds=seconds, cpu_seconds=cpu_seconds)
    if not options.json:
        for name, value in figures.items():
            print(f"{name.replace('_', ' '):32}{value:>14,}")
    asked = {name: str(value) for name, value in vars(options).items() if name not in {"json", "profile_calls"}}
    machine = {"date": datetime.now(UTC).date().isoformat(), "python": platform.python_version()}
    print(json.dumps({"bench": "sim", **figures, "asked": asked, **machine}))
    return 0


def simulate(
    arrivals: Sequence[Arrival],
    engines: Sequence[VirtualEngine],
    choose: Callable[[Arrival], int],
    *,
    speed: float,
    block_size: int,
) -> Outcome:
    """Runs the arrivals on the engines until the last one has its answer."""
    outcome, arrived = Outcome(), dict[str, float]()
    due: list[tuple[float, int]] = []

    def wake(until: float) -> None:
        while due and due[0][0] <= until:
            at, number = heapq.heappop(due)
            engine = engines[number]
            if engine.next_at != at:
                continue  # it was woken for something else since
            for step in engine.advance(at):
                outcome.take(step, arrived)
            schedule(number)

    def schedule(number: int) -> None:
        at = engines[number].next_at
        if at is not None:
            heapq.heappush(due, (at, number))

    for index, arrival in enumerate(arrivals):
        now = arrival.at / speed
        wake(now)
        key = str(index)
        arrived[key] = now
        outcome.prompt_tokens += arrival.prompt_tokens
        number = choose(arrival)
        engines[number].add(_sequence(key, arrival, block_size), now=now)
        schedule(number)
    wake(float("inf"))
    return outcome


def _sequence(key: str, arrival: Arrival, block_size: int) -> SimSequence:
    """The trace's blocks, each as so many of the engine's: those that lie in its full blocks are shared."""
    each = BLOCK_TOKENS // block_size
    hashes = [block * each + part for block in arrival.blocks for part in range(each)]
    # What the last, partly filled block of the trace holds is this prompt's own.
    own = itertools.count(-1 - (int(key) << 32), -1)
    hashes += itertools.islice(own, arrival.prompt_tokens // block_size - len(hashes))
    return SimSequence.of_hashes(
        key, prompt_tokens=arrival.prompt_tokens, hashes=hashes, output_tokens=arrival.output_tokens
    )


def _round_robin(engines: Sequence[VirtualEngine]) -> Callable[[Arrival], int]:
    numbers: Iterator[int] = itertools.cycle(range(len(engines)))
    return lambda _arrival: next(numbers)


def _affinity(engines: Sequence[VirtualEngine]) -> Callable[[Arrival], int]:
    """The engine that last had the longest prefix, unless it has far more to do than the one with the least."""
    last: dict[int, int] = {}

    def choose(arrival: Arrival) -> int:
        loads = [engine.running + engine.waiting for engine in engines]
        least = min(range(len(engines)), key=loads.__getitem__)
        known = next((last[block] for block in reversed(arrival.blocks) if block in last), least)
        chosen = known if loads[known] <= 2 * loads[least] + _SLACK else least
        last.update(dict.fromkeys(arrival.blocks, chosen))
        return chosen

    return choose


def _with_blocks_of(profile: Profile, block_size: int) -> Profile:
    shape = profile.shape
    blocks = shape.kv_blocks * shape.block_size // block_size
    return replace(profile, shape=replace(shape, block_size=block_size, kv_blocks=blocks))


def _figures(outcome: Outcome, requests: int, *, seconds: float, cpu_seconds: float) -> dict[str, float]:
    ttft = sorted(outcome.ttft_s)
    return {
        "requests": requests,
        "ended": outcome.ended,
        "wall_s": round(seconds, 2),
        "cpu_s": round(cpu_seconds, 2),
        "requests_per_wall_s": round(requests / seconds, 1),
        "virtual_s": round(outcome.ended_at, 1),
        "virtual_per_wall": round(outcome.ended_at / seconds, 1),
        "steps": outcome.steps,
        "steps_told_as": outcome.told,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_share": round(outcome.cached_tokens / max(1, outcome.prompt_tokens), 4),
        "output_tokens": outcome.output_tokens,
        "preemptions": outcome.preemptions,
        "blocks_stored": outcome.blocks_stored,
        "blocks_removed": outcome.blocks_removed,
        "ttft_p50_s": round(ttft[len(ttft) // 2], 3) if ttft else 0.0,
        "ttft_p99_s": round(ttft[len(ttft) * 99 // 100], 3) if ttft else 0.0,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sim", description=__doc__)
    parser.add_argument(
        "trace", type=Path, help="a trace in Mooncake's format, such as its conversation_trace.jsonl (FAST'25)"
    )
    parser.add_argument("--requests", type=int, default=0, help="the first so many requests of the trace (all)")
    parser.add_argument("--workers", type=int, default=16, help="engines (16)")
    parser.add_argument("--profile", default="h100-8b", help="the engines' profile (h100-8b)")
    parser.add_argument("--block-size", type=int, default=0, help="tokens of a KV block (as the profile says)")
    parser.add_argument("--speed", type=float, default=1.0, help="arrivals come so many times as fast (1)")
    parser.add_argument("--dispatch", choices=_DISPATCH, default=_DISPATCH[0], help="how engines are chosen (affinity)")
    parser.add_argument("--ahead", action="store_true", help="schedule a step ahead, as vLLM does on a GPU")
    parser.add_argument("--profile-calls", action="store_true", help="print where the time goes; takes longer itself")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
