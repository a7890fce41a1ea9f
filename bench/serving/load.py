"""Streams that are open at once, and what was measured of them."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from bench.serving.arms import Arm
from bench.serving.words import say


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for: so many streams, each of which makes so many requests, one after another.

    Attributes:
        shared_tokens: So many tokens begin each prompt, the same ones in all of a run.
    """

    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    shared_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a load.

    Attributes:
        ttft_ms: From the call to the first token, of each request.
    """

    tokens_per_s: float
    ttft_ms: list[float]

    @property
    def ttft_p50_ms(self) -> float:
        return median(self.ttft_ms)


async def run(arm: Arm, load: Load, *, seed: int) -> Sample:
    """Makes the load; prompts are random but for the shared part, and the same ones for the same seed."""
    ttft_ms = list[float]()
    chance = Random(seed)
    shared = [chance.randrange(10, 1000) for _ in range(load.shared_tokens)]

    async def stream(chance: Random) -> None:
        for _ in range(load.requests):
            own = [chance.randrange(10, 1000) for _ in range(load.prompt_tokens - load.shared_tokens)]
            began, first, made = time.perf_counter(), None, 0
            async for tokens in arm.generate(shared + own, tokens=load.output_tokens):
                if first is None and tokens:
                    first = time.perf_counter()
                made += tokens
            if first is None or made != load.output_tokens:
                raise RuntimeError(f"{made} tokens came instead of {load.output_tokens}.")
            ttft_ms.append((first - began) * 1000)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(load.streams):
            group.create_task(stream(Random(chance.random())))
    took_s = time.perf_counter() - began
    return Sample(load.streams * load.requests * load.output_tokens / took_s, ttft_ms)


async def interleaved(arms: Mapping[str, Arm], load: Load, *, rounds: int) -> dict[str, list[Sample]]:
    """Samples of each arm, taken in turns. Who begins changes from round to round; all get the same prompts."""
    samples: dict[str, list[Sample]] = {name: [] for name in arms}
    for number in range(rounds):
        turns = deque(arms.items())
        turns.rotate(-number)
        for name, arm in turns:
            sample = await run(arm, load, seed=1 + number)
            samples[name].append(sample)
            say(
                f"{load.streams} streams, round {number + 1}, {name}: {sample.tokens_per_s:.1f} tokens/s, "
                f"TTFT p50 {sample.ttft_p50_ms:.1f} ms"
            )
    return samples


def compare(samples: Mapping[str, list[Sample]], *, of: str, to: str) -> dict[str, Any]:
    """What one arm makes of it beside another; their n-th samples were measured one soon after the other."""
    pairs = zip(samples[of], samples[to], strict=True)
    ratios = sorted(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)
    ours_ms, theirs_ms = _ttft_p50_ms(samples[of]), _ttft_p50_ms(samples[to])
    return {
        to: _figures(samples[to]),
        of: _figures(samples[of]),
        "throughput_ratio": round(median(ratios), 3),
        "throughput_ratios": [round(ratio, 3) for ratio in ratios],
        "ttft_p50_ratio": round(ours_ms / theirs_ms, 3),
        "ttft_p50_more_ms": round(ours_ms - theirs_ms, 2),
    }


def _figures(samples: list[Sample]) -> dict[str, float]:
    return {
        "tokens_per_s": round(median(sample.tokens_per_s for sample in samples), 1),
        "ttft_p50_ms": round(_ttft_p50_ms(samples), 2),
    }


def _ttft_p50_ms(samples: list[Sample]) -> float:
    return median(ms for sample in samples for ms in sample.ttft_ms)
