"""What one greedy tenant, and too much traffic, do to everybody else, with the default policy."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from downstack.replay.compare import Result, Setting, replay
from downstack.replay.measures import Outcome
from downstack.replay.workload import Job

from bench.routes.cells import Cell, jobs_of, setting_of

_OURS = "worth"
_SWEEP = (0.8, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def overload(cell: Cell, folder: Path, *, capacity: float, factors: Sequence[float]) -> dict[str, Any]:
    """Goodput at several times the load that gives the best goodput, as a share of that.

    `capacity` is about what the fleet completes; the load with the best goodput is looked for around it.
    """
    natural = _rate(jobs_of(replace(cell, speed=1.0), folder))
    setting = setting_of(cell)

    def at(load: float) -> Result:
        return replay(jobs_of(replace(cell, speed=load * capacity / natural), folder), setting, _OURS)

    swept = {load: at(load).summary.goodput for load in _SWEEP}
    best = max(swept, key=lambda load: swept[load])
    rows = []
    for factor in factors:
        result = at(factor * best)
        rows.append(
            {
                "factor": factor,
                "goodput": result.summary.goodput,
                "share_of_best": result.summary.goodput / swept[best],
                "refused": result.summary.refused,
                "refusals": dict(result.summary.refusals),
                "requests": result.summary.requests,
                "ttft_p99_ms": result.summary.ttft_p99_ms,
                "refused_in_ms_p99": _refused_in_ms(result.outcomes),
            }
        )
    return {"best_load_per_s": best * capacity, "best_goodput": swept[best], "rows": rows}


def greedy(cell: Cell, folder: Path, *, capacity: float, tenants: int, excess: float) -> dict[str, Any]:
    """K tenants, of which the first sends `excess` times the share of one, against the others alone."""
    jobs = jobs_of(replace(cell, speed=1.0), folder)
    chance = random.Random(cell.seed)
    weights = [excess, *([1.0] * (tenants - 1))]
    owners = chance.choices(range(tenants), weights, k=len(jobs))
    natural, others_share = _rate(jobs), (tenants - 1) / tenants
    # All tenants with one share each would fill the fleet to 80 %; the greedy one comes on top of that.
    speed = 0.8 * capacity * others_share / (natural * (tenants - 1) / sum(weights))
    shared = [
        replace(job, at=job.at / speed, tenant=f"tenant-{owner}") for job, owner in zip(jobs, owners, strict=True)
    ]
    alone = [job for job in shared if job.tenant != "tenant-0"]
    setting = setting_of(cell)
    with_greedy = [one for one in replay(shared, setting, _OURS).outcomes if one.job.tenant != "tenant-0"]
    without = replay(_numbered(alone), setting, _OURS).outcomes
    return {
        "tenants": tenants,
        "excess": excess,
        "requests_of_others": len(alone),
        "ttft_p99_alone_ms": _ttft_p99_ms(without),
        "ttft_p99_beside_ms": _ttft_p99_ms(with_greedy),
        "ratio": _ttft_p99_ms(with_greedy) / _ttft_p99_ms(without),
        "refused_alone": sum(bool(one.refused) for one in without),
        "refused_beside": sum(bool(one.refused) for one in with_greedy),
    }


def backlogged(cell: Cell, folder: Path, *, capacity: float, tenants: int) -> dict[str, Any]:
    """Jain's index of the tokens that equal tenants get while all of them always have something waiting."""
    jobs = jobs_of(replace(cell, speed=1.0), folder)
    speed = 3.0 * capacity / _rate(jobs)
    shared = [replace(job, at=job.at / speed, tenant=f"tenant-{job.number % tenants}") for job in jobs]
    result = replay(shared, _patient(setting_of(cell)), _OURS)
    until = shared[-1].at
    served = Counter[str]()
    for one in result.outcomes:
        if one.finished_at is not None and one.finished_at <= until:
            served[one.job.tenant] += one.job.prompt_tokens - one.cached_tokens + 2 * one.output_tokens
    shares = [served[f"tenant-{number}"] for number in range(tenants)]
    return {"tenants": tenants, "jain": sum(shares) ** 2 / (tenants * sum(share**2 for share in shares))}


def _patient(setting: Setting) -> Setting:
    """Nobody is turned away: what is measured is the order."""
    limits = replace(setting.limits, max_queued=1 << 20, max_queued_per_tenant=1 << 20, max_wait_s=1e6)
    timing = replace(setting.timing, deadline_s=1e6)
    return replace(setting, limits=limits, timing=timing, admission=False)


def _numbered(jobs: Sequence[Job]) -> list[Job]:
    return [replace(job, number=number) for number, job in enumerate(jobs)]


def _rate(jobs: Sequence[Job]) -> float:
    return len(jobs) / max(jobs[-1].at - jobs[0].at, 1e-9)


def _ttft_p99_ms(outcomes: Sequence[Outcome]) -> float:
    found = [1000 * one.ttft_s for one in outcomes if one.ttft_s is not None]
    return float(np.percentile(found, 99)) if found else float("nan")


def _refused_in_ms(outcomes: Sequence[Outcome]) -> float:
    """How long refused callers waited for their refusal, at the 99th percentile."""
    found = [1000 * (one.refused_at - one.job.at) for one in outcomes if one.refused_at is not None]
    return float(np.percentile(found, 99)) if found else 0.0
