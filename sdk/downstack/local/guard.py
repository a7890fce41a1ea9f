"""Kill what a supervisor started when it dies without stopping it: `guard.py`, with a pipe as standard input.

The supervisor writes `+PGID` and `-PGID` lines for the process groups that it starts and ends. When the pipe closes,
the groups that are left are told to end, and killed after a grace. This reaches what PR_SET_PDEATHSIG cannot:
grandchildren, and servers that run as another user. Runs as a script in an interpreter without site packages.
"""

import os
import signal
import sys
import time

GRACE_S = 3.0
POLL_S = 0.05


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    end(groups)


def end(groups: set[int]) -> None:
    """Ask, wait, kill. SIGINT is what every server here takes as a quick stop (PostgreSQL's fast shutdown)."""
    deadline = time.monotonic() + GRACE_S
    left = {group for group in groups if send(group, signal.SIGINT)}
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = {group for group in left if send(group, 0)}
    for group in left:
        send(group, signal.SIGKILL)


def send(group: int, number: signal.Signals | int) -> bool:
    """Signal a group; whether it exists."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
