"""Our end of the guard: a process that ends what we started if we die without doing so."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_SCRIPT = Path(__file__).with_name("guard.py")


class Watchdog:
    """Tell it each process group that starts and ends; use it in a `with`."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", str(_SCRIPT)]
        self._guard = subprocess.Popen(  # noqa: S603 -- our own script
            command, stdin=subprocess.PIPE, start_new_session=True, text=True, bufsize=1
        )
        return self

    def started(self, group: int) -> None:
        self._tell(f"+{group}\n")

    def ended(self, group: int) -> None:
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._guard.stdin
        self._guard.stdin.write(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._guard.stdin
        self._guard.stdin.close()
        self._guard.wait()
