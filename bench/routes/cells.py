"""One cell of the grid: a policy, a trace, a load, a cache size and a number of schedulers, replayed."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from downstack.replay.compare import Setting, replay
from downstack.replay.measures import Objectives
from downstack.replay.simulation import sized
from downstack.replay.trace import TraceFormat, read_trace
from downstack.replay.workload import Job, make_jobs

from services.worker.profiles import load_profile

OBJECTIVES = Objectives(ttft_s=5.0, tpot_s=0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is replayed.

    Attributes:
        speed: The trace is played so many times as fast.
        kv_blocks: KV blocks of 512 tokens a worker; 0 is the profile's own.
        requests: Only the first so many of the trace.
    """

    policy: str
    trace: str
    form: str
    speed: float
    kv_blocks: int
    schedulers: int
    workers: int = 8
    profile: str = "h100-8b"
    requests: int = 1500
    tenants: int = 1
    seed: int = 1

    @property
    def key(self) -> str:
        """Names the cell among all others."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(cell: Cell, folder: Path) -> list[Job]:
    """The requests of a cell."""
    arrivals = read_trace(folder / cell.trace, TraceFormat(cell.form), limit=cell.requests)
    return make_jobs(arrivals, speed=cell.speed, tenants=cell.tenants, seed=cell.seed)


def setting_of(cell: Cell) -> Setting:
    """The fleet of a cell."""
    profile = sized(load_profile(cell.profile), kv_blocks=cell.kv_blocks)
    return Setting(profiles=[profile] * cell.workers, objectives=OBJECTIVES, schedulers=cell.schedulers, seed=cell.seed)


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """The figures of a cell."""
    result = replay(jobs_of(cell, folder), setting_of(cell), cell.policy)
    return {
        **result.summary.as_dict(),
        "decisions_per_s": result.decisions_per_s,
        "wall_s": result.wall_s,
    }


def run_all(cells: Sequence[Cell], folder: Path, *, processes: int, say: Any) -> list[dict[str, Any]]:
    """The figures of many cells, in their order, computed in processes of their own."""
    found: dict[int, dict[str, Any]] = {}
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(run, cell, folder): number for number, cell in enumerate(cells)}
        for done in as_completed(waiting):
            number = waiting[done]
            found[number] = done.result()
            cell = cells[number]
            say(
                f"{len(found)}/{len(cells)} {cell.policy} {cell.trace} x{cell.speed:.2f} {cell.kv_blocks} blocks "
                f"{cell.schedulers} schedulers: goodput {found[number]['goodput']:.2f}/s"
            )
    return [found[number] for number in range(len(cells))]


def capacity(cell: Cell, folder: Path) -> float:
    """Requests a second that the fleet completes with least-loaded placement when all arrive at once."""
    flood = replace(cell, policy="least-loaded", speed=cell.speed * 1000, schedulers=1)
    setting = setting_of(flood)
    patient = replace(setting, timing=replace(setting.timing, deadline_s=1e6))
    summary = replay(jobs_of(flood, folder), patient, flood.policy).summary
    return (summary.requests - summary.refused) / summary.makespan_s
