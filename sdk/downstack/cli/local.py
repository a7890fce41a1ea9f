"""The commands `status`, `logs` and `doctor` of a local run."""

import json as jsonlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from downstack.cli.output import CommandError, console, print_json, print_table
from downstack.cli.run import EngineOption
from downstack.cli.session import DataDirOption, JsonOption
from downstack.local import control
from downstack.local import doctor as checks
from downstack.local.config import default_engine
from downstack.local.folder import DataFolder, find_folder
from downstack.local.state import Phase

_FOLLOW_S = 0.2
_TAIL_LINES = 200


def status(data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Show what runs here. Exit status 1 where it is not ready."""
    folder = DataFolder(find_folder(data_dir, start=Path.cwd()))
    state = folder.running()
    if json:
        print_json(control.summary(folder, state))
    else:
        console().print(f"{state.phase} · {state.engine} · {', '.join(state.models)} · {folder.path}", markup=False)
        rows = [
            [name, part.state, str(part.pid or ""), part.address, str(part.restarts), part.detail]
            for name, part in state.parts.items()
        ]
        print_table(["part", "state", "pid", "address", "restarts", ""], rows)
    if state.phase is not Phase.READY:
        raise typer.Exit(1)


def logs(
    service: Annotated[str, typer.Argument(help="One part, such as router. Default: all.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines of each log.")] = _TAIL_LINES,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show the logs of the local run, the last one's where none runs. With --json one object a line."""
    folder = DataFolder(find_folder(data_dir, start=Path.cwd()))
    state = folder.state()
    found = {name: Path(part.log) for name, part in state.parts.items() if part.log} if state else {}
    found["supervisor"] = folder.logs / "supervisor.log"
    if service and service not in found:
        raise CommandError(f"there is no log of {service!r}; there are {', '.join(found)}", reason="NO_SUCH_LOG")
    chosen = {service: found[service]} if service else found
    show = _show_json if json else _show if service else _show_labelled
    places = {name: _show_tail(name, log, lines, show=show) for name, log in chosen.items()}
    while follow:
        time.sleep(_FOLLOW_S)
        for name, log in chosen.items():
            places[name] = _show_new(name, log, places[name], show=show)


_Show = Callable[[str, str], None]


def _show_tail(name: str, log: Path, lines: int, *, show: _Show) -> int:
    if not log.exists():
        return 0
    content = log.read_bytes()
    for line in content.decode(errors="replace").splitlines()[-lines:] if lines else []:
        show(name, line)
    return len(content)


def _show_new(name: str, log: Path, place: int, *, show: _Show) -> int:
    size = log.stat().st_size if log.exists() else 0
    if size <= place:
        return size  # nothing new, or it was cut
    with log.open("rb") as file:
        file.seek(place)
        whole, newline, _ = file.read(size - place).rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        show(name, line)
    return place + len(whole) + len(newline)


def _show(_name: str, line: str) -> None:
    print(line, flush=True)


def _show_labelled(name: str, line: str) -> None:
    print(f"{name:12} | {line}", flush=True)


def _show_json(name: str, line: str) -> None:
    """The services log JSON, PostgreSQL and Kafka log text."""
    try:
        entry = jsonlib.loads(line)
    except ValueError:
        entry = line
    print(jsonlib.dumps({"part": name, "entry": entry}, ensure_ascii=False), flush=True)


def doctor(engine: EngineOption = None, data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Check this machine, and say what is missing and how to get it. Exit status 1 where something needed is."""
    folder = DataFolder(find_folder(data_dir, start=Path.cwd()))
    found = checks.examine(folder, engine=engine or default_engine())
    if json:
        print_json({"checks": [check.as_dict() for check in found]})
    else:
        for check in found:
            mark, style = ("ok", "green") if check.ok else ("missing", "red") if check.needed else ("note", "yellow")
            console().print(f"{mark:8}", end="", style=style)
            console().print(f"{check.name}: {check.sentence}", markup=False)
    if any(check.needed and not check.ok for check in found):
        raise typer.Exit(1)
