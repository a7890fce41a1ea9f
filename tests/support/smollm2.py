"""The small real model of the tests."""

import importlib.util
from pathlib import Path

import pytest
from downstack.local.weights import prepare_weights

_FOLDER = Path(__file__).parents[2] / ".downstack" / "models" / "smollm2-135m"


def smollm2_folder() -> Path:
    """Its folder, made once and kept. Skips the test where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed (the set-up with ENGINE=sim leaves it out)")
    return prepare_weights(_FOLDER)
