"""The engine's processes as the kernel sees them: what they compute, and their end."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def tree(pids: Iterable[int]) -> Iterator[int]:
    """These processes and all that they started, directly or not."""
    for pid in pids:
        yield pid
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # it has ended meanwhile
                yield from tree(map(int, children.read_text().split()))


def processor_s(pids: Iterable[int]) -> float:
    """The processor time that they have used, in seconds. What cannot be read counts as none."""
    ticks = 0
    for pid in tree(pids):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks * _TICK_S


def kill(pids: Iterable[int]) -> None:
    """Ends them and all that they started. A stopped process has no ear for anything milder."""
    for pid in list(tree(pids)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
