"""Loopback ports of a local run: those of the last run where they are free, else usual or fresh ones."""

import socket
from collections.abc import Mapping, Sequence

from downstack.local.layout import LocalError

HOST = "127.0.0.1"
USUAL = {"router": 50051}
"""Ports that are tried before a fresh one is taken."""


def choose_ports(names: Sequence[str], *, last: Mapping[str, str], fixed: Mapping[str, int]) -> dict[str, str]:
    """An address for each name.

    Args:
        names: What needs a port.
        last: Addresses of the last run.
        fixed: Ports that were asked for.

    Raises:
        LocalError: A port that was asked for is in use.
    """
    held: list[socket.socket] = []
    chosen: dict[str, str] = {}
    try:
        for name in sorted(names, key=lambda name: name not in fixed):
            probe = _bind(name, last=last.get(name, ""), fixed=fixed.get(name, 0))
            held.append(probe)  # so that no port is given twice
            chosen[name] = f"{HOST}:{probe.getsockname()[1]}"
    finally:
        for probe in held:
            probe.close()
    return chosen


def _bind(name: str, *, last: str, fixed: int) -> socket.socket:
    if fixed:
        probe = _try_bind(fixed)
        if probe is None:
            raise LocalError(f"port {fixed} is in use; give the {name} another one with --port")
        return probe
    wanted = int(last.rpartition(":")[2] or 0)
    probe = _try_bind(wanted or USUAL.get(name, 0)) or _try_bind(0)
    if probe is None:
        raise LocalError(f"there is no free port for the {name}")
    return probe


def _try_bind(port: int) -> socket.socket | None:
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((HOST, port))
        probe.listen(1)
    except OSError:
        probe.close()
        return None
    return probe


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    probe = _try_bind(port)
    if probe is not None:
        probe.close()
    return probe is not None
