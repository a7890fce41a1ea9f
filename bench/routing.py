"""Compares placement policies: policies x traces x loads x cache sizes x schedulers, replayed in virtual time.

Writes tables and plots below docs/benchmarks, and prints one JSON line last. Every policy sees the same arrivals. Those
of other systems place on arrival, as those systems do, and once more behind our queue and admission (NAME+queue).
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from downstack.replay.compare import policy_names, queued_names

from bench.routes.cells import OBJECTIVES, Cell, capacity, jobs_of, run_all
from bench.routes.report import Grid, Point, write
from bench.routes.stress import backlogged, greedy, overload

# As they are published, and under the names that collections of traces give them.
_TRACES = (
    (("conversation_trace.jsonl", "mooncake_conversation.jsonl"), "mooncake"),
    (("AzureLLMInferenceTrace_conv.csv", "azure_llm_2023_conv.csv"), "azure"),
)
_DATA = Path(os.environ.get("DOWNSTACK_TRACES", "traces"))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The axes of the grid."""

    policies: list[str]
    loads: list[float]
    kv_blocks: list[int]
    schedulers: list[int]


def main() -> int:
    """Replays the grid, then the stress cases."""
    options = _options()
    began = time.perf_counter()
    traces = [
        (found[0], form) for names, form in _TRACES if (found := [n for n in names if (options.traces / n).exists()])
    ]
    if not traces:
        wanted = " or ".join(names[0] for names, _ in _TRACES)
        print(f"no {wanted} in {options.traces}: name their folder by --traces or DOWNSTACK_TRACES", file=sys.stderr)
        return 2
    sizes = _Sizes(
        options.policies.split(",") if options.policies else [*policy_names(), *queued_names()],
        [float(load) for load in options.loads.split(",")],
        [int(blocks) for blocks in options.kv_blocks.split(",")],
        [int(count) for count in options.schedulers.split(",")],
    )
    base = Cell(
        policy="worth",
        trace=traces[0][0],
        form=traces[0][1],
        speed=1.0,
        kv_blocks=0,
        schedulers=1,
        workers=options.workers,
        profile=options.profile,
        requests=options.requests,
    )
    points = [
        point for trace in traces for point in _points(replace(base, trace=trace[0], form=trace[1]), sizes, options)
    ]
    cells = [cell for point in points for cell in point.cells]
    figures = iter(run_all(cells, options.traces, processes=options.processes, say=_say))
    grid = Grid([(point, [next(figures) for _ in point.cells]) for point in points])
    stress = _stress(replace(base, requests=options.stress_requests), options) if options.stress else {}
    facts = {"machine": _machine(), "asked": _asked(options), "objectives": asdict(OBJECTIVES)}
    if options.write:
        write(grid, stress, facts, Path("docs/benchmarks"), wall_s=time.perf_counter() - began)
    print(json.dumps({"summary": grid.summary(), "stress": stress, **facts, "wall_s": time.perf_counter() - began}))
    return 0


def _points(base: Cell, sizes: _Sizes, options: argparse.Namespace) -> list[Point]:
    """One point for each load, cache size and number of schedulers; all policies meet there."""
    capacity_per_s = capacity(base, options.traces)
    jobs = jobs_of(base, options.traces)
    natural = len(jobs) / max(jobs[-1].at - jobs[0].at, 1e-9)
    # Where nothing is shared, a cache of another size changes nothing.
    kv_blocks = sizes.kv_blocks if any(job.reusable_tokens for job in jobs) else [0]
    _say(f"{base.trace}: {natural:.2f} requests/s as recorded; the fleet completes {capacity_per_s:.2f}/s")
    return [
        Point(
            base.trace,
            load,
            blocks,
            count,
            [
                replace(base, policy=name, speed=load * capacity_per_s / natural, kv_blocks=blocks, schedulers=count)
                for name in sizes.policies
            ],
        )
        for load, blocks, count in itertools.product(sizes.loads, kv_blocks, sizes.schedulers)
    ]


def _stress(base: Cell, options: argparse.Namespace) -> dict[str, Any]:
    capacity_per_s = capacity(base, options.traces)
    _say("stress: overload")
    found: dict[str, Any] = {"overload": overload(base, options.traces, capacity=capacity_per_s, factors=(2.0, 10.0))}
    _say("stress: a greedy tenant")
    found["greedy"] = greedy(base, options.traces, capacity=capacity_per_s, tenants=8, excess=50.0)
    _say("stress: equal tenants")
    found["backlogged"] = backlogged(base, options.traces, capacity=capacity_per_s, tenants=8)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--traces", type=Path, default=_DATA, help="folder of the traces (DOWNSTACK_TRACES)")
    parser.add_argument("--policies", default="", help="NAME[,NAME…] (all)")
    parser.add_argument("--loads", default="0.6,0.9,1.5", help="load as a share of what the fleet completes")
    parser.add_argument("--kv-blocks", default="256,0,16384", help="KV blocks of 512 tokens a worker; 0: the profile's")
    parser.add_argument("--schedulers", default="1,4", help="numbers of schedulers (1,4)")
    parser.add_argument("--workers", type=int, default=8, help="workers (8)")
    parser.add_argument("--profile", default="h100-8b", help="their kind (h100-8b)")
    parser.add_argument("--requests", type=int, default=1500, help="requests of each trace; 0 for all (1500)")
    parser.add_argument("--stress-requests", type=int, default=4000, help="requests of the stress cases (4000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="replays at once (cores)")
    parser.add_argument("--no-stress", dest="stress", action="store_false", help="the grid only")
    parser.add_argument("--no-write", dest="write", action="store_false", help="leave docs/benchmarks as it is")
    return parser.parse_args()


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    return {name: each for name, each in vars(options).items() if name not in {"traces", "write"}}


def _machine() -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "arch": platform.machine(),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
