"""The measurement of a GPU machine at its smallest size: it runs, and says what it promises."""

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from services.worker.profiles import load_profile

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]


async def test_a_machine_is_measured_without_weights(tmp_path: Path) -> None:
    """What a GPU machine does, on the CPU: a profile that loads, and each of the comparisons."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed (the set-up with ENGINE=sim leaves it out)")
    small = ["--models", "tiny", "--tiny", "--streams", "2", "--rounds", "1"]
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "bench.gpu", *small, "--prompt-tokens", "16", "--output-tokens", "8"],
        *["--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    tiny = json.loads(out.decode().strip().splitlines()[-1])["models"]["tiny"]
    profile = load_profile(tiny["profile"])
    assert profile.rates.decode_base_ms > 0
    assert profile.shape.context_tokens == 512
    two = tiny["streams"]["2"]
    assert {"tokens_per_s", "ttft_p50_ms"} == set(two["worker"]["direct"]) == set(two["worker"]["worker"])
    assert two["worker"]["throughput_ratio"] > 0.1
    assert two["kv_events"]["throughput_ratio"] > 0.1
    assert tiny["prefix_cache"]["direct"]["warm_ms"] > 0
