"""One service process: started with its log and death signal, watched, stopped within a budget."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = Path(__file__).with_name("launch.py")
_TAIL_BYTES = 32_768
_MAX_LINE = 300


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run: arguments, the environment beside our own, and the file for its output."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path


class ServiceProcess:
    """A running command. It leads its own process group and dies with this process."""

    def __init__(self, process: asyncio.subprocess.Process, *, log: Path, log_start: int) -> None:
        self._process = process
        self._log = log
        self._log_start = log_start
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Command) -> "ServiceProcess":
        """Start it. Call from the main thread: the kernel binds its life to the thread that makes it."""
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
        with command.log.open("ab") as log:
            log_start = log.tell()
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **command.env},
                start_new_session=True,
            )
        return cls(process, log=command.log, log_start=log_start)

    def last_words(self) -> str:
        """What its log says last of it. Empty where it has said nothing."""
        return last_words(self._log, since=self._log_start)

    async def wait(self) -> int:
        """The exit status, negative for a signal. What it left of its group is killed."""
        status = await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return status

    async def stop(self, *, budget_s: float) -> None:
        """Ask it to end, and kill its group when the budget is used up."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(budget_s):
                await self.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.wait()


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def last_words(log: Path, *, since: int = 0) -> str:
    """The last line of a log after byte `since` that reports a failure, or else its last line. Empty: it has none."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    readable = [(level, text) for level, text in map(_read_line, lines) if text]
    failures = [text for level, text in readable if level in {"error", "critical"}]
    return (failures or [text for _, text in readable] or [""])[-1][:_MAX_LINE]


def _read_line(line: str) -> tuple[str, str]:
    """Level and text of a log line; a line that is no JSON is taken as it stands, a traceback's last as an error."""
    with contextlib.suppress(ValueError, AttributeError):
        fields = json.loads(line)
        texts = [str(fields[key]) for key in ("event", "message", "error", "exception") if fields.get(key)]
        return str(fields.get("level", "")).lower(), ": ".join(text.strip().splitlines()[-1] for text in texts)
    name = line.split(":", 1)[0]
    is_exception = name.endswith(("Error", "Exception")) and name.replace(".", "").isidentifier()
    return ("error" if is_exception else ""), line.strip()


def cut_log(log: Path, *, max_bytes: int) -> None:
    """Keep a log that is still being appended to within its bound: the older piece goes to `NAME.1`."""
    if not log.exists() or log.stat().st_size <= max_bytes:
        return
    log.with_suffix(log.suffix + ".1").write_bytes(log.read_bytes())
    os.truncate(log, 0)
