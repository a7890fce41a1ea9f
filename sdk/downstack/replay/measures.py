"""What became of the requests of a replay, and the figures that are drawn from it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from downstack.replay.workload import Job, bound


@dataclass(slots=True)
class Outcome:
    """One request's fate. Times are virtual, in seconds; None: it did not come to that."""

    job: Job
    refused: str = ""
    refused_at: float | None = None
    failed: bool = False
    granted_at: float | None = None
    first_at: float | None = None
    finished_at: float | None = None
    cached_tokens: int = 0
    predicted_cached_tokens: int = 0
    output_tokens: int = 0
    worker_id: str = ""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.job.at

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first; 0 for an answer of one token."""
        if self.first_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.first_at) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Objectives:
    """When an answer was good: its first token, and those that followed, came in time."""

    ttft_s: float
    tpot_s: float

    def met(self, outcome: Outcome) -> bool:
        ttft, tpot = outcome.ttft_s, outcome.tpot_s
        return ttft is not None and tpot is not None and ttft <= self.ttft_s and tpot <= self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one policy.

    Attributes:
        goodput: Answers a second that met the objectives, over `makespan_s`.
        good_share: Those answers as a share of all requests that arrived.
        tokens_per_s: Output tokens a second over the same time as `makespan_s`.
        hit_rate: The share of the admitted requests' prompt tokens that came from a cache.
        hit_share_of_bound: `hit_rate` as a share of what a cache without an end would give for all requests.
        predicted_hit_share: The share of admitted requests whose cached tokens were predicted exactly.
        jain: Jain's index over tenants of the share of each tenant's requests that met the objectives.
        cost: What the fleet cost from the first arrival to the last answer, in the profile's currency.
        makespan_s: Virtual time from the first arrival to the last answer.
    """

    requests: int
    admitted: int
    refused: int
    failed: int
    refusals: Mapping[str, int]
    goodput: float
    good_share: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    queue_p99_ms: float
    hit_rate: float
    hit_tokens: int
    hit_share_of_bound: float
    predicted_hit_share: float
    jain: float
    cost: float
    makespan_s: float

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def summarize(outcomes: Sequence[Outcome], *, objectives: Objectives, price_per_s: float) -> Summary:
    """The figures of a whole replay."""
    jobs = [one.job for one in outcomes]
    admitted = [one for one in outcomes if one.first_at is not None]
    finished = [one for one in admitted if one.finished_at is not None]
    good = [one for one in outcomes if objectives.met(one)]
    ended_at = max([one.finished_at or 0.0 for one in finished], default=0.0)
    makespan_s = max(ended_at, jobs[-1].at) - jobs[0].at
    hit_tokens = sum(one.cached_tokens for one in admitted)
    hit_rate = hit_tokens / max(1, sum(one.job.prompt_tokens for one in admitted))
    ttft = _ms(one.ttft_s for one in admitted)
    tpot = _ms(one.tpot_s for one in finished)
    queued = _ms(one.granted_at - one.job.at if one.granted_at is not None else None for one in admitted)
    reachable = bound(jobs)
    exact = sum(one.cached_tokens == one.predicted_cached_tokens for one in admitted)
    return Summary(
        requests=len(outcomes),
        admitted=len(admitted),
        refused=sum(bool(one.refused) for one in outcomes),
        failed=sum(one.failed for one in outcomes),
        refusals=_counts(one.refused for one in outcomes if one.refused),
        goodput=len(good) / max(makespan_s, 1e-9),
        good_share=len(good) / len(outcomes),
        tokens_per_s=sum(one.output_tokens for one in finished) / max(makespan_s, 1e-9),
        ttft_p50_ms=_percentile(ttft, 50),
        ttft_p90_ms=_percentile(ttft, 90),
        ttft_p99_ms=_percentile(ttft, 99),
        tpot_p50_ms=_percentile(tpot, 50),
        tpot_p99_ms=_percentile(tpot, 99),
        queue_p99_ms=_percentile(queued, 99),
        hit_rate=hit_rate,
        hit_tokens=hit_tokens,
        hit_share_of_bound=hit_rate / reachable if reachable else 1.0,
        predicted_hit_share=exact / max(1, len(admitted)),
        jain=_jain(outcomes, objectives),
        cost=price_per_s * makespan_s,
        makespan_s=makespan_s,
    )


def _ms(seconds: Iterable[float | None]) -> list[float]:
    return [1000 * each for each in seconds if each is not None]


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _jain(outcomes: Sequence[Outcome], objectives: Objectives) -> float:
    """(sum x)^2 / (n sum x^2), x the served share of each tenant (Jain, Chiu, Hawe 1984)."""
    asked, served = Counter[str](), Counter[str]()
    for one in outcomes:
        asked[one.job.tenant] += 1
        served[one.job.tenant] += objectives.met(one)
    shares = [served[tenant] / count for tenant, count in asked.items()]
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
