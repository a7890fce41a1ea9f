"""A running system on the simulated engine, and the tools that call it from outside."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.running import System, Tool

_COMMAND = str(Path(sys.executable).with_name("downstack"))
_START_S = 180


@pytest.fixture(scope="session")
def system(short_tmp: Path) -> Iterator[System]:
    """The whole system, started and stopped by its own command."""
    folder = short_tmp / "up"
    run = [_COMMAND, "up", "--engine", "sim", "--detach", "--json", "--data-dir", str(folder)]
    started = subprocess.run(run, capture_output=True, text=True, timeout=_START_S, check=False)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        state = json.loads((folder / "run.json").read_text())
        addresses = {name: part["address"] for name, part in state["parts"].items() if part["address"]}
        credentials = json.loads((folder / "credentials").read_text())
        yield System(addresses=addresses, model=state["models"][0], api_key=credentials["api_key"])
    finally:
        subprocess.run([_COMMAND, "down", "--data-dir", str(folder)], timeout=_START_S, check=True)


@pytest.fixture(scope="session")
def grpcurl() -> Tool:
    return Tool.find("grpcurl")


@pytest.fixture(scope="session")
def ghz() -> Tool:
    return Tool.find("ghz")


@pytest.fixture(scope="session")
def health_probe() -> Tool:
    return Tool.find("grpc_health_probe")
