from pathlib import Path

import pytest

from tests.component.cli.command import Command, runner


@pytest.fixture
def downstack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in an empty folder and without settings of the person who runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("TARGET", "API_KEY", "ADMIN_KEY", "DATA_DIR", "TARGET_RETRIEVER", "TARGET_SCHEDULER", "TARGET_KAFKA"):
        monkeypatch.delenv(f"DOWNSTACK_{name}", raising=False)
    return runner(monkeypatch, capsys)
