"""Measures a machine with vLLM by itself, without weights and without a network, and writes profiles of it.

For each model (the shape of a real one, random weights): how long which step takes, as a profile for the simulated
engine; what a cached prefix saves; and, with many streams at once, what the worker costs beside calling AsyncLLM
directly, and what KV events cost. A model that does not fit is measured with two numbers of layers, and its rates are
extrapolated. Prints one JSON line last, and how it goes on stderr.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from downstack.local.daemon import free_port
from pydantic import SecretStr

from bench.machine import machine
from bench.serving.arms import SECRET, Arm, direct, worker
from bench.serving.grid import TINY_PLAN, Grid, Plan, measure_grid
from bench.serving.load import Load, compare, interleaved, run
from bench.serving.profile import write_profile
from bench.serving.shapes import SHAPES, ModelShape
from bench.serving.words import say
from services.kit.models import Tokenizer
from services.worker.domain.rates import Rates
from services.worker.ports import EngineSpec
from services.worker.settings import WorkerSettings

_BYTES_PER_PARAMETER = 2
# The share of the memory that weights may take where the whole model is measured.
_MOST_WEIGHTS = 0.75
_EXTRAPOLATED_LAYERS = (4, 12)
# Three engines are up at once where they are compared.
_SHARE_OF_THREE = 0.29


def main() -> int:
    """Measures what was asked for, and prints."""
    options = _options()
    began, before = time.monotonic(), machine()
    options.out.mkdir(parents=True, exist_ok=True)
    models = {name: asyncio.run(_model(SHAPES[name], options)) for name in options.models}
    measured = {
        "bench": "gpu",
        "models": models,
        "seconds": round(time.monotonic() - began, 1),
        "machine": {**machine(), **_device(), "load_average_before": before["load_average"]},
    }
    print(json.dumps(measured))
    return 0


async def _model(shape: ModelShape, options: argparse.Namespace) -> dict[str, Any]:
    whole = shape.parameters * _BYTES_PER_PARAMETER < _MOST_WEIGHTS * _memory_bytes(options.tensor_parallel)
    if not whole:
        return await _extrapolated(shape, options)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shape.write(Path(folder))
        settings = _settings(options, Path(folder), shape=shape)
        grid, spec = await _grid(settings, options)
        found = _written(shape, grid.rates(), spec=spec, how="measured", options=options)
        found |= {"fit_error": grid.errors(), "points": grid.as_json(), "whole": True}
        found |= await _serving(settings.model_copy(update={"gpu_memory_utilization": _SHARE_OF_THREE}), options)
    return found


async def _extrapolated(shape: ModelShape, options: argparse.Namespace) -> dict[str, Any]:
    """Rates are linear in the number of layers, apart from what comes before and after them."""
    rates, points, spec = list[Rates](), {}, None
    for layers in _EXTRAPOLATED_LAYERS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            shape.with_layers(layers).write(Path(folder))
            grid, spec = await _grid(_settings(options, Path(folder), shape=shape), options)
        rates.append(grid.rates())
        points[str(layers)] = grid.as_json()
    assert spec is not None
    few, many = _EXTRAPOLATED_LAYERS
    share = (shape.layers - few) / (many - few)
    values = {
        field.name: max(0.0, (1 - share) * getattr(rates[0], field.name) + share * getattr(rates[1], field.name))
        for field in fields(Rates)
    }
    how = f"extrapolated from {few} and {many} layers: the model does not fit into this machine"
    return {**_written(shape, Rates(**values), spec=spec, how=how, options=options), "points": points, "whole": False}


async def _grid(settings: WorkerSettings, options: argparse.Namespace) -> tuple[Grid, EngineSpec]:
    # After the settings: vLLM reads its environment when it is imported.
    from services.worker.adapters.vllm.launch import vllm_engine  # noqa: PLC0415

    engine = vllm_engine(settings, Tokenizer.load(Path(settings.model_path)), rates=Rates(0.0, 0.0, 0.0, 0.0))
    say(f"starting {settings.model} for its grid")
    try:
        await engine.start()
        return await measure_grid(engine, TINY_PLAN if options.tiny else Plan()), engine.spec
    finally:
        await engine.stop()


async def _serving(settings: WorkerSettings, options: argparse.Namespace) -> dict[str, Any]:
    """The worker, AsyncLLM with KV events, and without; all are up, and one of them works."""
    async with AsyncExitStack() as stack:
        say("starting the worker, and AsyncLLM twice")
        arms: dict[str, Arm] = {
            "worker": await stack.enter_async_context(worker(settings)),
            "direct": await stack.enter_async_context(direct(settings)),
            "without_kv_events": await stack.enter_async_context(direct(settings, kv_events=False)),
        }
        for arm in arms.values():
            await run(arm, Load(2, 1, 16, 8), seed=0)
        streams = {}
        for count in options.streams:
            load = Load(count, 1, options.prompt_tokens, options.output_tokens, spread_s=options.spread_s)
            samples = await interleaved(arms, load, rounds=options.rounds)
            streams[str(count)] = {
                "worker": compare(samples, of="worker", to="direct"),
                "kv_events": compare(samples, of="direct", to="without_kv_events"),
            }
        return {"streams": streams, "prefix_cache": await _prefix_cache(arms, settings, rounds=options.rounds)}


async def _prefix_cache(arms: dict[str, Arm], settings: WorkerSettings, *, rounds: int) -> dict[str, Any]:
    """The time to the first token of a long prompt, and of the same one again."""
    found = {}
    length = settings.context_tokens // 2
    for name in ("direct", "worker"):
        cold_ms, warm_ms = list[float](), list[float]()
        for number in range(rounds):
            load = Load(1, 1, length, 1)
            for taken in (cold_ms, warm_ms):
                taken.append((await run(arms[name], load, seed=1000 + number)).ttft_p50_ms)
        found[name] = {"cold_ms": round(median(cold_ms), 2), "warm_ms": round(median(warm_ms), 2)}
    return {"prompt_tokens": length, **found}


def _written(
    shape: ModelShape, rates: Rates, *, spec: EngineSpec, how: str, options: argparse.Namespace
) -> dict[str, Any]:
    device = _device()["device"]
    path = options.out / f"{options.device_name}-{shape.name}.toml"
    write_profile(
        path,
        model=shape.name,
        spec=spec,
        rates=rates,
        price=(options.price_per_hour, options.currency),
        sources={
            "device": f"{options.tensor_parallel} x {device}, vLLM {spec.engine_version}",
            "model": f"the shape of {shape.source}, {shape.parameters / 1e9:.2f}e9 parameters, random weights",
            "shape": "what vLLM found room for" if how == "measured" else "that of the engine with fewer layers",
            "rates": f"bench/gpu.py, {how}",
            "price": options.price_source,
        },
    )
    return {"profile": str(path), "rates": asdict(rates), "how": how}


def _settings(options: argparse.Namespace, folder: Path, *, shape: ModelShape) -> WorkerSettings:
    return WorkerSettings(
        listen=f"127.0.0.1:{free_port()}",
        metrics_listen="",
        engine="vllm",
        model=shape.name,
        model_path=str(folder),
        load_format="dummy",
        tensor_parallel=options.tensor_parallel,
        calibration="off",
        enforce_eager=options.tiny,
        block_size=32 if options.tiny else 16,
        context_tokens=shape.context_tokens,
        max_num_seqs=max(8, *options.streams),
        max_num_batched_tokens=min(8192, max(512, shape.context_tokens)),
        service_secret=SecretStr(SECRET.decode()),
        kafka_bootstrap="127.0.0.1:1",
        outbox_path=Path("unused"),
    )


def _memory_bytes(devices: int) -> float:
    """That of the GPUs, or of a CPU's machine."""
    import torch  # noqa: PLC0415  it takes seconds to import

    if torch.cuda.is_available():
        return float(devices * torch.cuda.get_device_properties(0).total_memory)
    return 8e9


def _device() -> dict[str, str]:
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(0), "cuda": str(torch.version.cuda), "torch": torch.__version__}
    return {"device": "CPU", "torch": torch.__version__}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=list(SHAPES), default=["llama-3-8b", "llama-3-70b"], help="which shapes")
    add("--out", type=Path, default=Path("gpu-profiles"), help="where the profiles go (gpu-profiles)")
    add("--device-name", default="gpu", help="how the profiles' names begin, such as h100 (gpu)")
    add("--tensor-parallel", type=int, default=1, help="GPUs that share a model (1)")
    add("--streams", type=int, nargs="+", default=[1, 32, 256], help="streams at once (1 32 256)")
    add("--rounds", type=int, default=5, help="runs of each load on each side (5)")
    add("--prompt-tokens", type=int, default=256, help="length of each prompt (256)")
    add("--output-tokens", type=int, default=128, help="mean length of an answer (128)")
    add("--spread-s", type=float, default=1.0, help="seconds over which the streams begin (1)")
    add("--price-per-hour", type=float, default=0.0, help="for the profile (0)")
    add("--currency", default="USD", help="for the profile (USD)")
    add("--price-source", default="none given", help="for the profile")
    add("--tiny", action="store_true", help="the smallest grid, to try this on a CPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
