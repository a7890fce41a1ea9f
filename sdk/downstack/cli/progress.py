"""What people see while a local run starts: bars on a terminal, lines elsewhere, nothing where JSON was asked for."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column

from downstack.local.state import PartState, PartStatus, Phase, RunState

_BAR_WIDTH = 24
_NAME_WIDTH = 12


class View(Protocol):
    """Shows a run's states."""

    def show(self, state: RunState) -> None:
        """Take in the newest state."""

    def close(self) -> None:
        """Leave what was shown as it is. Harmless when repeated."""


class Silence:
    """Shows nothing."""

    def show(self, state: RunState) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """One line for each change of a part."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown: dict[str, PartState] = {}

    def close(self) -> None:
        pass

    def show(self, state: RunState) -> None:
        for name, part in state.parts.items():
            if part.state is not self._shown.get(name) and part.state is not PartState.WAITING:
                self._write(f"{name}: {_words(part)}")
            self._shown[name] = part.state


class Bars:
    """A bar for each part, and one for the whole start."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=_NAME_WIDTH)),
            BarColumn(bar_width=_BAR_WIDTH),
            TextColumn("{task.fields[words]}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def close(self) -> None:
        self._progress.stop()

    def show(self, state: RunState) -> None:
        self._progress.start()
        for name, part in state.parts.items():
            bar = self._bar(name)
            # A bar without a total moves: nobody knows how long a start takes.
            total = None if part.state in {PartState.STARTING, PartState.RESTARTING} else 1
            done = 1 if part.state in {PartState.READY, PartState.STOPPED} else 0
            self._progress.update(bar, total=total, completed=done, words=_words(part))
        ready = sum(part.state is PartState.READY for part in state.parts.values())
        words = f"{ready} of {len(state.parts)} ready, {time.monotonic() - self._began:.1f} s"
        whole = self._bar("everything")
        self._progress.update(whole, total=len(state.parts), completed=ready, words=words)

    def _bar(self, name: str) -> TaskID:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=1, words="")
        return self._bars[name]


def view_for(console: Console, *, json: bool) -> View:
    """The view that fits where the output goes."""
    if json:
        return Silence()
    if console.is_terminal:
        return Bars(console)
    return Lines(lambda line: console.print(line, markup=False))


def restart_lines(before: RunState, now: RunState) -> list[str]:
    """What to tell about a run that was ready: parts that died, and parts that are back."""
    if now.phase is not Phase.READY or before.phase is not Phase.READY:
        return []
    lines = []
    for name, part in now.parts.items():
        old = before.parts.get(name, part)
        if part.state is not old.state and part.state is PartState.RESTARTING:
            lines.append(part.detail)
        if part.state is not old.state and part.state is PartState.READY:
            lines.append(f"{name} is ready again after {part.started_s:.1f} s")
    return lines


def _words(part: PartStatus) -> str:
    if part.state is PartState.READY:
        where = f" at {part.address}" if part.address else ""
        return f"ready in {part.started_s:.1f} s{where}"
    return f"{part.state}: {part.detail}" if part.detail else str(part.state)
