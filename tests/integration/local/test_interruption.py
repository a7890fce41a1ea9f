"""A start that is interrupted leaves nothing behind."""

import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from downstack.local.folder import DataFolder

from tests.integration.local.system import COMMAND, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_start_stops_what_it_started(number: signal.Signals) -> None:
    """By Ctrl-C or by a polite kill, while parts are starting."""
    with tempfile.TemporaryDirectory(prefix="dsl-", ignore_cleanup_errors=True) as path:
        folder = DataFolder(Path(path) / "data")
        argv = [COMMAND, "up", "--engine", "sim", "--detach", "--data-dir", str(folder.path)]
        start = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: (state := folder.state()) is not None and bool(state.parts), why=lambda: "nothing started")
            start.send_signal(number)
            assert start.wait(timeout=90) == 130
            until(lambda: not folder.held(), why=lambda: "the supervisor is still there")
        finally:
            start.kill()
            start.wait()
            subprocess.run([COMMAND, "down", "--data-dir", str(folder.path)], check=False, capture_output=True)
