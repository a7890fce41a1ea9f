"""An engine's processes as the kernel sees them, on processes that stand for them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from services.worker.adapters.vllm.processes import kill, processor_s, tree

# A parent that waits, and a child that computes.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        yield parent, child
        kill([parent.pid])


def until_it_has_used(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + 30
    while processor_s([pid]) < seconds:
        assert time.monotonic() < deadline


def test_what_a_child_computes_counts_for_its_parent(family: tuple[subprocess.Popen[str], int]) -> None:
    """An engine that compiles lets others compute for it."""
    parent, child = family
    assert set(tree([parent.pid])) == {parent.pid, child}
    until_it_has_used(parent.pid, processor_s([parent.pid]) + 0.2)
    assert processor_s([child]) <= processor_s([parent.pid])


def test_a_stopped_process_computes_nothing(family: tuple[subprocess.Popen[str], int]) -> None:
    """However long it is looked at."""
    _, child = family
    os.kill(child, signal.SIGSTOP)
    while psutil.Process(child).status() != psutil.STATUS_STOPPED:
        pass
    used = processor_s([child])
    assert processor_s([child]) == used


def test_stopped_processes_are_killed_with_all_that_they_started(family: tuple[subprocess.Popen[str], int]) -> None:
    """They would not hear anything else."""
    parent, child = family
    for pid in (child, parent.pid):
        os.kill(pid, signal.SIGSTOP)
    gone = [psutil.Process(child)]
    kill([parent.pid])
    assert parent.wait(timeout=10) == -signal.SIGKILL
    assert not psutil.wait_procs(gone, timeout=10)[1]


def test_a_process_that_is_gone_is_nothing(family: tuple[subprocess.Popen[str], int]) -> None:
    """Neither to count nor to kill."""
    parent, _ = family
    kill([parent.pid])
    parent.wait(timeout=10)
    kill([parent.pid])
    assert processor_s([parent.pid]) == 0.0
