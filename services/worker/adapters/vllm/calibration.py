"""A short measurement at the start, so that the rates are the engine's own before it serves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict

import structlog

from services.worker.domain.calibration import Probe, probes
from services.worker.domain.rates import RateEstimate
from services.worker.domain.sampling import Sampling
from services.worker.ports import Engine

_log = structlog.get_logger()
_LONGEST_S = 3.0
_SALT = "calibration"
# Kernels settle with these: their times say nothing.
_WARM_UP = (Probe(-1, 16), Probe(-2, 16, requests=2, answer_tokens=2))
# vLLM tells what it forgot with its next step; this one makes a step, and is too short to leave a block.
_LAST = Probe(-3, 2, answer_tokens=1)


async def calibrate(engine: Engine, rates: RateEstimate, *, forget: Callable[[], Awaitable[bool]]) -> None:
    """Runs requests for about three seconds at most; what the estimate makes of them is where it falls back to.

    Afterwards `forget` is to empty the engine's cache, and returns whether it did.
    """
    began, declared = time.monotonic(), rates.current()
    spec, done = engine.spec, 0
    texts = set[int]()
    for probe in _WARM_UP:
        await _run(engine, probe)
    rates.restart(declared)
    sizes = {"context_tokens": spec.context_tokens, "block_size": spec.block_size, "max_num_seqs": spec.max_num_seqs}
    for probe in probes(**sizes):
        left_s = _LONGEST_S - (time.monotonic() - began)
        lacks_cache = probe.cached_tokens and probe.text not in texts
        if lacks_cache or probe.takes_ms(rates.current()) > left_s * 1000:
            continue
        await _run(engine, probe)
        texts.add(probe.text)
        done += 1
    rates.restart(rates.current())
    if not await forget():
        _log.warning("calibration_left_a_cache")
    await _run(engine, _LAST)
    found = {name: round(value, 6) for name, value in asdict(rates.current()).items()}
    _log.info("engine_calibrated", seconds=round(time.monotonic() - began, 2), probes=done, **found)


async def _run(engine: Engine, probe: Probe) -> None:
    # Not a task group: the engine's death is to come out as it is.
    await asyncio.gather(*(_request(engine, probe, number=number) for number in range(probe.requests)))


async def _request(engine: Engine, probe: Probe, *, number: int) -> None:
    sampling = Sampling(max_tokens=probe.answer_tokens, ignore_eos=True, temperature=0)
    # The text's number in the first token; any token will do for the rest.
    prompt = [3 + probe.text] + [1] * (probe.prompt_tokens - 1)
    outputs = engine.generate(
        prompt, sampling, request_id=f"calibration-{probe.text}-{number}", cache_salt=_SALT, priority=0
    )
    async for _ in outputs:
        pass
