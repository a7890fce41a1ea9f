"""From a trace to what the fleet is asked: tenants, speed, and how much an endless cache would save."""

import bisect
import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from downstack.replay.trace import BLOCK_TOKENS, Arrival

_ZIPF_EXPONENT = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a replay.

    Attributes:
        number: Counts from 0 in the order of arrival.
        at: Virtual time of its arrival, in seconds.
        hashes: One for each full block of the prompt. Tenants share no block: the hash is salted with the tenant.
        reusable_tokens: What a cache without an end would hold of the prompt, at most all but its last token.
    """

    number: int
    at: float
    tenant: str
    conversation: str
    prompt_tokens: int
    output_tokens: int
    hashes: tuple[int, ...]
    reusable_tokens: int


def make_jobs(arrivals: Sequence[Arrival], *, speed: float, tenants: int, seed: int) -> list[Job]:
    """The requests of a trace at `speed` times its pace, their conversations given to tenants by Zipf's law."""
    owner = _Owners(tenants, seed=seed)
    threads = _Threads()
    seen: set[int] = set()
    jobs = []
    for number, arrival in enumerate(arrivals):
        conversation = arrival.conversation or threads.of(arrival.blocks)
        tenant = owner.of(conversation)
        hashes = tuple(_salted(tenant, block) for block in arrival.blocks or _unshared(arrival, number))
        found = sum(1 for _ in itertools.takewhile(seen.__contains__, hashes))
        seen.update(hashes)
        jobs.append(
            Job(
                number=number,
                at=arrival.at / speed,
                tenant=f"tenant-{tenant}",
                conversation=conversation,
                prompt_tokens=arrival.prompt_tokens,
                output_tokens=arrival.output_tokens,
                hashes=hashes,
                reusable_tokens=min(found, (arrival.prompt_tokens - 1) // BLOCK_TOKENS) * BLOCK_TOKENS,
            )
        )
    return jobs


def bound(jobs: Iterable[Job]) -> float:
    """The share of prompt tokens that a cache without an end would save."""
    chosen = list(jobs)
    return sum(job.reusable_tokens for job in chosen) / max(1, sum(job.prompt_tokens for job in chosen))


def _salted(tenant: int, block: int) -> int:
    """A 64-bit hash that is one tenant's; blocks of a trace are numbers, not content."""
    return ((block + 1) * 0x9E3779B97F4A7C15 ^ tenant * 0xBF58476D1CE4E5B9) % 2**64


def _unshared(arrival: Arrival, number: int) -> range:
    """Ids of blocks that no other request has: what shares nothing fills caches all the same."""
    first = -(number + 1) << 32
    return range(first, first + arrival.prompt_tokens // BLOCK_TOKENS)


class _Owners:
    """Conversations and their tenants: the first of K tenants has most of them, the k-th a k-th of that."""

    def __init__(self, tenants: int, *, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311  a workload, not a secret
        weights = [1 / rank**_ZIPF_EXPONENT for rank in range(1, tenants + 1)]
        self._steps = list(itertools.accumulate(weights))
        self._known: dict[str, int] = {}

    def of(self, conversation: str) -> int:
        if conversation not in self._known:
            drawn = self._chance.random() * self._steps[-1]
            self._known[conversation] = bisect.bisect(self._steps, drawn)
        return self._known[conversation]


class _Threads:
    """Finds conversations: a prompt that goes on where an earlier one ended belongs to the same."""

    def __init__(self) -> None:
        self._ends: dict[int, str] = {}
        self._numbers = itertools.count()

    def of(self, blocks: Sequence[int]) -> str:
        # The tail of the earlier prompt was not full, so this prompt holds all of its full blocks.
        known = next((self._ends[block] for block in reversed(blocks) if block in self._ends), None)
        conversation = known if known is not None else f"conversation-{next(self._numbers)}"
        if len(blocks) > 1:
            self._ends[blocks[-1]] = conversation
        return conversation
