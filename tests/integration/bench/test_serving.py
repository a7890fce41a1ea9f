"""The benchmarks of the worker at their smallest size: they run, and say what they promise."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from services.worker.profiles import load_profile
from tests.support.smollm2 import smollm2_folder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]


async def figures(*command: str) -> dict[str, Any]:
    """The JSON line that a benchmark prints last."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out.decode().strip().splitlines()[-1])
    return found


async def test_the_worker_is_compared_with_vllm_itself() -> None:
    """Throughput and time to the first token of both, as ratios."""
    command = ["bench.worker", "--streams", "2", "--rounds", "1", "--output-tokens", "8"]
    found = await figures(*command, "--model-path", str(smollm2_folder()))
    two = found["streams"]["2"]
    assert two["throughput_ratio"] > 0.2
    assert {"tokens_per_s", "ttft_p50_ms"} == set(two["direct"]) == set(two["worker"])


async def test_a_machine_is_measured_without_weights(tmp_path: Path) -> None:
    """What a GPU machine does, on the CPU: a profile that loads, and each of the comparisons."""
    smollm2_folder()  # or vLLM is not installed
    command = ["bench.gpu", "--models", "tiny", "--tiny", "--streams", "2", "--rounds", "1", "--prompt-tokens", "16"]
    found = await figures(*command, "--output-tokens", "8", "--out", str(tmp_path))
    tiny = found["models"]["tiny"]
    profile = load_profile(tiny["profile"])
    assert profile.rates.decode_base_ms > 0
    assert profile.shape.context_tokens == 512
    assert tiny["streams"]["2"]["worker"]["throughput_ratio"] > 0.1
    assert tiny["streams"]["2"]["kv_events"]["throughput_ratio"] > 0.1
    assert tiny["prefix_cache"]["direct"]["warm_ms"] > 0
