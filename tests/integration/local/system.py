"""The whole system as people run it: by its command, in processes of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from downstack.client import Client
from downstack.local.folder import DataFolder
from downstack.local.state import PartState, RunState

COMMAND = str(Path(sys.executable).with_name("downstack"))
BUDGET_S = 120.0
_PAUSE_S = 0.05


@dataclass(frozen=True)
class System:
    """One data folder, and the commands that go with it."""

    folder: DataFolder

    def run(self, *argv: str, check: bool = True, budget_s: float = BUDGET_S) -> subprocess.CompletedProcess[str]:
        """A command of ours on this folder."""
        done = subprocess.run(
            [COMMAND, *argv, "--data-dir", str(self.folder.path)],
            capture_output=True,
            text=True,
            timeout=budget_s,
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith("DOWNSTACK_")},
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr + self.tails()
        return done

    def json(self, *argv: str) -> Any:
        return json.loads(self.run(*argv, "--json").stdout)

    @property
    def state(self) -> RunState:
        state = self.folder.state()
        assert state is not None
        return state

    def client(self) -> Client:
        credentials, ends = self.folder.credentials(), self.state.endpoints
        assert credentials is not None
        return Client.connect(
            ends["router"],
            api_key=credentials.api_key,
            retriever=ends["retriever"],
            scheduler=ends["scheduler"],
            timeout_s=60,
        )

    def until_back(self, name: str, *, restarts: int) -> None:
        """Wait until a part has been started again so often, and is ready."""

        def back() -> bool:
            part = self.state.parts[name]
            return part.restarts >= restarts and part.state is PartState.READY

        until(back, why=lambda: f"{name} did not come back: {self.state.parts[name]}{self.tails()}")

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything that it has started, grandchildren and other users' included."""
        supervisor = psutil.Process(self.state.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def tails(self) -> str:
        """The ends of all logs, for a failed assertion."""
        logs = sorted(self.folder.logs.glob("*.log"))
        return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)


def until(true: Callable[[], bool], *, why: Callable[[], str]) -> None:
    """Wait for something that another process does; there is nothing to wait on but its effect."""
    deadline = time.monotonic() + BUDGET_S
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(_PAUSE_S)
