"""Faults of a replay: workers that crash, and come back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstack.replay.trace import TraceError


@dataclass(frozen=True, slots=True)
class Crash:
    """A worker dies at virtual second `at`, and is back with an empty cache `down_s` later; never if that is None."""

    at: float
    worker: int
    down_s: float | None


def read_faults(path: Path, *, workers: int) -> list[Crash]:
    """Faults from a JSON list such as `[{"at": 60, "worker": 0, "down_s": 30}]`; workers count from 0.

    Raises:
        TraceError: The file cannot be read, or names what there is not.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"the faults {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TraceError(f"{path} is not JSON: {error}") from error
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise TraceError(f'{path} must be a list of objects such as {{"at": 60, "worker": 0, "down_s": 30}}')
    return [_crash(path, entry, workers) for entry in entries]


def _crash(path: Path, entry: Any, workers: int) -> Crash:
    try:
        down_s = entry.get("down_s")
        crash = Crash(float(entry["at"]), int(entry["worker"]), None if down_s is None else float(down_s))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path}: {entry!r} is no fault; it needs `at` and `worker`, and may have `down_s`") from error
    if not 0 <= crash.worker < workers or crash.at < 0 or (crash.down_s is not None and crash.down_s < 0):
        raise TraceError(f"{path}: {entry!r} is no fault of a fleet of {workers} workers")
    return crash
