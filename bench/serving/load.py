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

# Prompts are of tokens that every tokenizer has, and that mean nothing to it.
_LEAST_TOKEN, _VOCABULARY = 10, 250


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for: so many streams, each of which makes so many requests, one after another.

    Attributes:
        output_tokens: The mean length of an answer; one in particular is up to half of it shorter or longer.
        spread_s: The time over which the streams begin. Calls in one process that begin all at once reach the engine
            within one step, and calls over a network never do.
    """

    streams: int
    requests: int
    prompt_tokens: int
    output_tokens: int
    spread_s: float = 0.0


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
    """Makes the load, with random prompts and lengths, which are the same ones for the same seed."""
    chance, ttft_ms, made = Random(seed), list[float](), 0

    async def stream(place: int, chance: Random) -> None:
        nonlocal made
        await asyncio.sleep(load.spread_s * place / load.streams)
        for _ in range(load.requests):
            prompt = [chance.randrange(_LEAST_TOKEN, _VOCABULARY) for _ in range(load.prompt_tokens)]
            tokens = chance.randint((load.output_tokens + 1) // 2, load.output_tokens * 3 // 2)
            ttft_ms.append(await _ttft_ms(arm, prompt, tokens=tokens))
            made += tokens

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for place in range(load.streams):
            group.create_task(stream(place, Random(chance.random())))
    return Sample(made / (time.perf_counter() - began), ttft_ms)


async def _ttft_ms(arm: Arm, prompt: list[int], *, tokens: int) -> float:
    """Reads a whole answer."""
    began, first, made = time.perf_counter(), None, 0
    async for came in arm.generate(prompt, tokens=tokens):
        if first is None and came:
            first = time.perf_counter()
        made += came
    if first is None or made != tokens:
        raise RuntimeError(f"{made} tokens came instead of {tokens}.")
    return (first - began) * 1000


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
