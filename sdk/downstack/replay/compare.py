"""One trace, one fleet, several policies: each on a fresh fleet, with the same arrivals."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from downstack.replay.faults import Crash
from downstack.replay.measures import Objectives, Outcome, Summary, summarize
from downstack.replay.simulation import Demand, Simulation, Timing
from downstack.replay.station import MODEL
from downstack.replay.workload import Job
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.cost import DEFAULT_OBJECTIVES
from services.scheduler.domain.grammar import Binding
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.policies.registry import policies
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Price, Priority
from services.worker.profiles import Profile

_NO_PRICE = Price(version="replay", currency="", input_nano=0, cached_nano=0, output_nano=0)
_QUEUED = "+queue"
_S_PER_HOUR_IN_NANO = 3600 * 1_000_000_000
# The share of the objective that is promised: predictions are not exact.
_ADMITTED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all policies of a comparison share.

    Attributes:
        profiles: One for each worker, with blocks of the trace's size.
        priority: The class of every request.
        value: What a perfect answer is worth, in the currency of the profile's price.
        admission: Whether schedulers know the objective, and turn away what would miss it after a wait.
    """

    profiles: Sequence[Profile]
    objectives: Objectives
    schedulers: int = 1
    seed: int = 0
    crashes: Sequence[Crash] = ()
    timing: Timing = field(default_factory=Timing)
    priority: Priority = Priority.STANDARD
    value: float = 1.0
    limits: Limits = field(default_factory=Limits)
    admission: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """One policy's figures.

    Attributes:
        decisions_per_s: Requests by the wall time that all schedulers took for all that they were told.
    """

    policy: str
    summary: Summary
    outcomes: Sequence[Outcome]
    decisions_per_s: float
    wall_s: float


def policy_names() -> list[str]:
    """The policies that can be compared, each as its own system runs it."""
    return list(policies(DEFAULT_OBJECTIVES, value=1.0))


def queued_names() -> list[str]:
    """Policies that place on arrival, put behind our queue and admission: the same choice of a worker, bound late."""
    known = policies(DEFAULT_OBJECTIVES, value=1.0)
    return [f"{name}{_QUEUED}" for name, make in known.items() if make().binding is not Binding.LATE]


def compare(
    jobs: Sequence[Job], setting: Setting, names: Sequence[str], *, progress: Callable[[str, int], None] | None = None
) -> list[Result]:
    """Replay the jobs once for each policy. `progress` is told of the policy, and of requests that came to an end."""
    found = []
    for name in names:
        told = (lambda count, name=name: progress(name, count)) if progress is not None else None
        found.append(replay(jobs, setting, name, progress=told))
    return found


def replay(
    jobs: Sequence[Job], setting: Setting, name: str, *, progress: Callable[[int], None] | None = None
) -> Result:
    """Replay the jobs with one policy."""
    ids = itertools.count()
    brains = [_brain(setting, name, which, lambda: f"lse-{next(ids)}") for which in range(setting.schedulers)]
    simulation = Simulation(
        jobs,
        brains,
        setting.profiles,
        crashes=setting.crashes,
        timing=setting.timing,
        demand=Demand(priority=setting.priority),
    )
    began = time.perf_counter()
    simulation.run(progress=progress)
    wall_s = time.perf_counter() - began
    price_per_s = sum(profile.price_per_hour_nano for profile in setting.profiles) / _S_PER_HOUR_IN_NANO
    summary = summarize(simulation.outcomes, objectives=setting.objectives, price_per_s=price_per_s)
    return Result(name, summary, simulation.outcomes, simulation.decisions / max(simulation.deciding_s, 1e-9), wall_s)


def _brain(setting: Setting, name: str, which: int, new_lease_id: Callable[[], str]) -> Brain:
    wish = replace(DEFAULT_OBJECTIVES[setting.priority], ttft_ms=1000 * setting.objectives.ttft_s)
    objectives = {**DEFAULT_OBJECTIVES, setting.priority: wish}
    policy = policies(objectives, value=setting.value)[name.removesuffix(_QUEUED)]()
    if name.endswith(_QUEUED):
        policy = replace(policy, binding=Binding.LATE)
    limits = setting.limits
    if setting.admission:
        limits = replace(limits, admit_ttft_ms_standard=_ADMITTED * wish.ttft_ms)
    return Brain(
        limits=limits,
        policy=policy,
        prices=PriceList({}, _NO_PRICE),
        chance=random.Random(setting.seed + which),  # noqa: S311  a choice between equals
        new_lease_id=new_lease_id,
        known_models=[MODEL],
        started_at=-setting.timing.beat_s,
    )
