"""What the contract tests call, and the published tools that they call it with."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_TOOLS = Path(__file__).parents[2] / ".tools" / "bin"
_CALL_S = 60


@dataclass(frozen=True)
class System:
    """What `downstack up` started: addresses by part, a model and a caller's key."""

    addresses: Mapping[str, str]
    model: str
    api_key: str

    @property
    def router(self) -> str:
        return self.addresses["router"]

    @property
    def authorization(self) -> str:
        return f"Bearer {self.api_key}"

    def address_of(self, service: str) -> str:
        """The address of a service; workers have numbered names."""
        return next(address for name, address in self.addresses.items() if name.startswith(service))


class Tool:
    """A published command-line client."""

    def __init__(self, path: str) -> None:
        self._path = path

    @classmethod
    def find(cls, name: str) -> "Tool":
        """The tool that the set-up built, or one on the path; else the test is skipped with what to do."""
        path = shutil.which(name, path=os.pathsep.join((str(_TOOLS), os.environ.get("PATH", ""))))
        if path is None:
            pytest.skip(f"{name} is not installed: run `make setup` without TOOLS=0")
        return cls(path)

    def run(self, *arguments: str, expect: int = 0) -> str:
        """What it printed; only its standard output where it is to succeed."""
        done = subprocess.run([self._path, *arguments], capture_output=True, text=True, timeout=_CALL_S, check=False)
        assert done.returncode == expect, f"{done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout if expect == 0 else done.stdout + done.stderr
