"""Runs the command in this process, as its console script does."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from downstack.cli.__main__ import main


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Command = Callable[..., Result]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*argv: str) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["downstack", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Result(status=int(ended.value.code or 0), out=captured.out, err=captured.err)

    return run
