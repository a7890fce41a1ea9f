"""Servers that other programs run for us: start them apart from the terminal, find them again, stop them by pid."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from downstack.local.layout import LocalError

_POLL_S = 0.05


class Daemon:
    """One server process: a child of ours, or one that an earlier run left behind."""

    def __init__(self, process: psutil.Process, *, child: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._child = child

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def running(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)

    def stop(self, first: signal.Signals, *, grace_s: float) -> None:
        """Send `first`, wait `grace_s`, then kill. Returns when the process is gone."""
        if not self.running():
            return
        self._process.send_signal(first)
        if not self._gone_within(grace_s):
            self._process.kill()
            if not self._gone_within(10):
                raise LocalError(f"Process {self.pid} does not end.")

    def _gone_within(self, timeout_s: float) -> bool:
        try:
            if self._child is not None:
                self._child.wait(timeout_s)
            else:
                self._process.wait(timeout_s)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            return False
        return True


def spawn(argv: Sequence[str], *, log: Path, user: int | None = None, env: Mapping[str, str] | None = None) -> Daemon:
    """Start `argv` in a session of its own, its output appended to `log`, as the OS user with uid `user`."""
    with log.open("ab") as output:
        child = subprocess.Popen(  # noqa: S603 - the callers build argv from paths they own
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user is not None else None,
            cwd="/",
            env={**os.environ, **(env or {})},
        )
    return Daemon(psutil.Process(child.pid), child=child)


def find(pid: int, *, argument: str) -> Daemon | None:
    """The running process `pid`, if `argument` is one of its command line's: pids are used again, folders are not."""
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and argument in process.cmdline()
    except psutil.Error:
        return None
    return Daemon(process) if alive else None


def wait_until(ready: Callable[[], bool], *, daemon: Daemon, log: Path, name: str, timeout_s: float) -> None:
    """Poll until `ready()`. Raises LocalError with the log's last line if the process ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if not daemon.running():
            raise LocalError(f"{name} ended while it started: {last_line(log)} (log: {log})")
        if time.monotonic() > deadline:
            raise LocalError(f"{name} was not ready within {timeout_s:.0f} s: {last_line(log)} (log: {log})")
        time.sleep(_POLL_S)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    if not log.exists():
        return "it wrote no log"
    lines = [line.strip() for line in log.read_text(errors="replace")[-8000:].splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("FATAL", "ERROR", "Exception"))]
    return (telling or lines or ["it wrote no log"])[-1][:300]


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder against another start or stop of the same server."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
