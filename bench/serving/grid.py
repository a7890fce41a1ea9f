"""How long an engine takes for which step: measured point by point, and the rates that fit."""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Any

from bench.serving.words import say
from services.worker.domain.rates import Decode, Prefill, RateEstimate, Rates
from services.worker.domain.sampling import Sampling
from services.worker.ports import Engine

_STEPS, _FEWEST_STEPS = 12, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """The points of a grid; those that do not fit into an engine are left out."""

    new_tokens: tuple[int, ...] = (128, 512, 2048, 4096)
    starts: tuple[int, ...] = (0, 2048, 4096)
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    contexts: tuple[int, ...] = (128, 1024, 4096)
    repeats: int = 3


TINY_PLAN = Plan(new_tokens=(32, 128), starts=(0, 128), batches=(1, 4), contexts=(32, 128), repeats=2)


@dataclass(slots=True)
class Grid:
    """What was measured: (new tokens, tokens before, ms) and (batch, context tokens together, ms)."""

    step_tokens: int
    prefills: list[tuple[int, int, float]] = field(default_factory=list)
    decodes: list[tuple[int, int, float]] = field(default_factory=list)

    def rates(self) -> Rates:
        """The rates that fit best."""
        estimate = RateEstimate(Rates(0.0, 0.0, 0.0, 0.0))
        for new, start, ms in self.prefills:
            estimate.saw_prefill(self._prefill(new, start), ms=ms)
        for batch, context, ms in self.decodes:
            estimate.saw_decode(Decode(batch, context), ms=ms)
        return estimate.current()

    def errors(self) -> dict[str, float]:
        """The median distance of the fit from the points, as a share of them."""
        rates = self.rates()
        prefill = [abs(self._predicted(rates, new, start) / ms - 1) for new, start, ms in self.prefills]
        decode = [abs(rates.decode_ms(batch, context_tokens=held) / ms - 1) for batch, held, ms in self.decodes]
        return {"prefill": round(median(prefill), 3), "decode": round(median(decode), 3)}

    def as_json(self) -> dict[str, Any]:
        """The points."""
        return {"prefill": self.prefills, "decode": self.decodes}

    def _prefill(self, new: int, start: int) -> Prefill:
        return Prefill.of(new, start=start, steps=-(-new // self.step_tokens))

    def _predicted(self, rates: Rates, new: int, start: int) -> float:
        more_steps = -(-new // self.step_tokens) - 1
        return rates.prefill_ms(new, start=start) + more_steps * rates.prefill_base_ms


async def measure_grid(engine: Engine, plan: Plan) -> Grid:
    """Runs the points one after another on an engine that does nothing else."""
    spec = engine.spec
    grid, prober = Grid(spec.max_num_batched_tokens), _Prober(engine)
    await prober.request(prober.text(16))
    for _ in range(plan.repeats):
        for new, start in product(plan.new_tokens, plan.starts):
            if start + new + _STEPS < spec.context_tokens:
                grid.prefills.append(await prober.prefill(new, start))
        say(f"prefill: {grid.prefills[-1]}")
        for batch, context in product(plan.batches, plan.contexts):
            fits = batch <= spec.max_num_seqs and batch * (context + _STEPS) < spec.kv_blocks * spec.block_size * 0.9
            if fits and context + _STEPS < spec.context_tokens:
                grid.decodes.append(await prober.decode(batch, context))
        say(f"decode: {grid.decodes[-1]}")
    return grid


class _Prober:
    """Makes requests with texts that nobody has seen."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = iter(range(1, 1 << 62))

    def text(self, tokens: int) -> list[int]:
        """Differs from all others in its first tokens, so that nothing of it is cached."""
        number = next(self._numbers)
        digits = [2 + number % 100, 2 + number // 100 % 100, 2 + number // 10_000 % 100]
        return (digits + [7] * tokens)[:tokens]

    async def prefill(self, new: int, start: int) -> tuple[int, int, float]:
        text = self.text(start + new)
        if start:
            await self.request(text[:start])
        ms, cached, _ = await self.request(text)
        return len(text) - cached, cached, ms

    async def decode(self, batch: int, context: int) -> tuple[int, int, float]:
        """The time of a step once all have their first token."""
        answers = await asyncio.gather(*(self.request(self.text(context), tokens=_STEPS) for _ in range(batch)))
        began = max(times[0] for *_, times in answers)
        # Where the first ones end before the last one begins, its own steps are what is left.
        found = [ms for *_, times in answers if (ms := _step_ms(times, since=began))] or [_step_ms(answers[-1][2])]
        return batch, batch * (context + _STEPS // 2), median(found)

    async def request(self, prompt: list[int], *, tokens: int = 1) -> tuple[float, int, list[float]]:
        """The time of the prefill in ms, how much was cached, and when tokens came."""
        sampling = Sampling(max_tokens=tokens, ignore_eos=True, temperature=0)
        ms, cached, times = 0.0, 0, list[float]()
        async for output in self._engine.generate(
            prompt, sampling, request_id=f"grid-{next(self._numbers)}", cache_salt="", priority=0
        ):
            times += [time.perf_counter()] * len(output.token_ids)
            ms, cached = output.prefill_ms or ms, output.cached_tokens or cached
        return ms, cached, times


def _step_ms(times: list[float], *, since: float = 0.0) -> float:
    """The mean time between two tokens from then on, 0 where there are too few; some may have come together."""
    began = next((time_s for time_s in times if time_s >= since), times[-1])
    later = sum(time_s > began for time_s in times)
    return (times[-1] - began) * 1000 / later if later >= _FEWEST_STEPS else 0.0
