"""Run a command that is killed when its parent dies: `launch.py PARENT_PID COMMAND...`.

Runs as a script in an interpreter without site packages, so that it costs a few milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 -- the supervisor made the command


if __name__ == "__main__":
    main()
