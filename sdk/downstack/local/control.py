"""Start, follow and stop a local run, from this process or from another one."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from downstack.local.config import LocalConfig
from downstack.local.folder import DataFolder
from downstack.local.layout import LocalError
from downstack.local.process import last_words
from downstack.local.state import Phase, RunState

_POLL_S = 0.05
STOP_BUDGET_S = 60.0


def run_here(config: LocalConfig, *, on_change: Callable[[RunState], None]) -> None:
    """Run everything until a signal to stop. Raises LocalError where it cannot start."""
    # What it imports is slow to load and is needed only where a run is supervised.
    from downstack.local.plan import LocalPlan  # noqa: PLC0415
    from downstack.local.supervisor import Supervisor  # noqa: PLC0415

    folder = DataFolder(config.data_dir)
    folder.claim()
    with folder.hold():
        _log_to(folder)
        plan = LocalPlan(config, folder)
        asyncio.run(Supervisor(config, folder=folder, plan=plan, on_change=on_change).run())


def start_detached(config: LocalConfig, *, on_change: Callable[[RunState], None]) -> None:
    """Run everything in another process; returns when it is ready. Raises LocalError where it cannot start."""
    folder = DataFolder(config.data_dir)
    folder.claim()
    with (folder.logs / "supervisor.log").open("ab") as log:
        log_start = log.tell()
        supervisor = subprocess.Popen(  # noqa: S603 -- our own module
            [sys.executable, "-m", "downstack.local", config.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if not _becomes_ready(folder, supervisor, on_change):
            raise LocalError(_why(folder, supervisor.pid, log_start=log_start))
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise


def _becomes_ready(
    folder: DataFolder, supervisor: "subprocess.Popen[bytes]", on_change: Callable[[RunState], None]
) -> bool:
    while supervisor.poll() is None:
        state = folder.state()
        if state is not None and state.pid == supervisor.pid:
            on_change(state)
            if state.phase is Phase.READY:
                return True
        time.sleep(_POLL_S)
    return False


def _why(folder: DataFolder, pid: int, *, log_start: int) -> str:
    """Why a supervisor ended before it was ready: what it wrote into its state, or else into its log."""
    state = folder.state()
    if state is not None and state.pid == pid and state.error:
        return state.error
    return last_words(folder.logs / "supervisor.log", since=log_start) or "the supervisor ended and said nothing"


def stop(folder: DataFolder) -> bool:
    """Stop the run that holds the folder, and return when it is gone; whether there was one."""
    if not folder.held():
        return False
    state = folder.running()
    with suppress(ProcessLookupError):
        os.kill(state.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_BUDGET_S
    while folder.held():
        if time.monotonic() > deadline:
            raise LocalError(f"the supervisor (process {state.pid}) did not stop within {STOP_BUDGET_S:.0f} s")
        time.sleep(_POLL_S)
    return True


def summary(folder: DataFolder, state: RunState) -> dict[str, Any]:
    """The state for programs, with where the keys are."""
    return {"data_dir": str(folder.path), "credentials": str(folder.credentials_file), **asdict(state)}


def _log_to(folder: DataFolder) -> None:
    handler = logging.FileHandler(folder.logs / "supervisor.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("downstack.local")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
