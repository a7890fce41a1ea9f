"""Compares the worker over gRPC with calling AsyncLLM directly, with the same engine arguments, in interleaved runs.

Both engines are up all the time, and one of them works. With `--engine sim` it is the simulated engine instead: its
steps take the same time in each run, so that what is left is the worker. Prints one JSON line last, and how it goes on
stderr.
"""

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from downstack.local.daemon import free_port
from pydantic import SecretStr

from bench.machine import machine
from bench.serving.arms import SECRET, Arm, direct, simulated, worker
from bench.serving.load import Load, compare, interleaved, run
from bench.serving.words import say
from services.worker.settings import WorkerSettings

# About what SmolLM2 takes on a core.
_SIMULATED = {
    "prefill_base_ms": 30.0,
    "prefill_ms_per_token": 3.0,
    "decode_base_ms": 50.0,
    "decode_ms_per_request": 2.0,
}
_FEWEST_REQUESTS = 16
_WARM_UP = Load(streams=2, requests=1, prompt_tokens=16, output_tokens=8)


def main() -> int:
    """Measures, and prints."""
    options = _options()
    began, before = time.monotonic(), machine()
    found = asyncio.run(measure(settings_of(options), loads_of(options), rounds=options.rounds))
    measured = {
        "bench": "worker",
        **found,
        "asked": {name: value for name, value in vars(options).items() if name != "model_path"},
        "seconds": round(time.monotonic() - began, 1),
        "machine": {**machine(), "load_average_before": before["load_average"]},
    }
    print(json.dumps(measured))
    return 0


async def measure(settings: WorkerSettings, loads: list[Load], *, rounds: int) -> dict[str, Any]:
    """Starts both, and runs each load on both, `rounds` times in turns."""
    async with AsyncExitStack() as stack:
        say("starting the worker")
        ours = await stack.enter_async_context(worker(settings))
        say("starting the engine in this process")
        in_process = simulated(settings) if settings.engine == "sim" else direct(settings)
        arms: dict[str, Arm] = {"direct": await stack.enter_async_context(in_process), "worker": ours}
        for arm in arms.values():
            await run(arm, _WARM_UP, seed=0)
        streams = {}
        for load in loads:
            samples = await interleaved(arms, load, rounds=rounds)
            streams[str(load.streams)] = compare(samples, of="worker", to="direct")
        return {"streams": streams, "engine": ours.engine}


def settings_of(options: argparse.Namespace) -> WorkerSettings:
    """The worker's settings, from which the engine's arguments are made on both sides."""
    settings = WorkerSettings(
        listen=f"127.0.0.1:{free_port()}",
        metrics_listen="",
        engine=options.engine,
        model="bench",
        context_tokens=options.context_tokens,
        max_num_seqs=max(options.streams),
        service_secret=SecretStr(SECRET.decode()),
        kafka_bootstrap="127.0.0.1:1",
        outbox_path=Path("unused"),
    )
    own = _SIMULATED if options.engine == "sim" else {"model_path": str(options.model_path)}
    return settings.model_copy(update=own)


def loads_of(options: argparse.Namespace) -> list[Load]:
    """Those of the options. Few streams make more requests, so that each load has some times to the first token."""
    return [
        Load(
            streams,
            requests=max(1, min(3, _FEWEST_REQUESTS // streams)),
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            spread_s=options.spread_s,
        )
        for streams in options.streams
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.worker", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="streams at once (1 8 32)")
    parser.add_argument("--engine", choices=["vllm", "sim"], default="vllm", help="the engine (vllm)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each load on each side (5)")
    parser.add_argument("--prompt-tokens", type=int, default=24, help="length of each prompt (24)")
    parser.add_argument("--output-tokens", type=int, default=32, help="mean length of an answer (32)")
    parser.add_argument("--spread-s", type=float, default=1.0, help="seconds over which the streams begin (1)")
    parser.add_argument("--context-tokens", type=int, default=256, help="the engine's context (256)")
    parser.add_argument(
        "--model-path", type=Path, default=Path(".downstack/models/smollm2-135m"), help="the model's folder (SmolLM2)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
