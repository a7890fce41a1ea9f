"""The command `demo`: the whole system at work, and a check of each thing that it shows."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from downstack.cli.demo_steps import Check, Tour
from downstack.cli.output import CommandError, console, print_json, print_table
from downstack.cli.progress import view_for
from downstack.cli.run import EngineOption
from downstack.cli.session import DataDirOption, JsonOption
from downstack.errors import ApiError
from downstack.local import control
from downstack.local.config import LocalConfig, default_engine
from downstack.local.folder import DataFolder, find_folder
from downstack.local.state import RunState

_FOLDER_NAME = "demo"


def demo(
    engine: EngineOption = None,
    docs: Annotated[Path, typer.Option(help="Folder with the documents to answer from.")] = Path("docs"),
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Start everything, show it at work, check each step, stop everything. Exit status 1 where a step failed."""
    if not docs.is_dir():
        raise CommandError(f"{docs} is not a folder; run this in the checkout, or give --docs", reason="NO_SUCH_FILE")
    folder = DataFolder(data_dir or find_folder(None, start=Path.cwd()) / _FOLDER_NAME)
    config = LocalConfig(data_dir=folder.path.absolute(), engine=engine or default_engine())
    checks = _run(config, folder, docs, json=json)
    if json:
        print_json({"checks": [check.as_dict() for check in checks]})
    else:
        rows = [["ok" if check.ok else "FAILED", check.name, check.detail] for check in checks]
        print_table(["", "check", "seen"], rows, title="\nSummary")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _run(config: LocalConfig, folder: DataFolder, docs: Path, *, json: bool) -> list[Check]:
    out = console()
    out.quiet = json
    out.print(f"Starting everything with the {config.engine} engine, in {folder.path} …", markup=False)
    with closing(view_for(out, json=json)) as view:
        control.start_detached(config, on_change=view.show)
    state = folder.running()
    checks = [Check(name="everything started", ok=True, detail=f"ready after {state.ready_s:.1f} s")]
    try:
        checks += _tour(Tour(folder, state, docs, out))
    finally:
        out.print("\nStopping everything …")
        control.stop(folder)
    return [*checks, _nothing_left(state)]


def _tour(tour: Tour) -> list[Check]:
    """Every step in order; a step that fails ends the tour."""
    checks: list[Check] = []
    steps: list[Callable[[], list[Check]]] = [
        tour.create_account,
        tour.ingest,
        tour.ask_plainly,
        tour.ask_twice,
        tour.ask_with_passages,
        tour.explain,
        tour.read_ledger,
        tour.read_offsets,
    ]
    with tour:
        for step in steps:
            try:
                checks += step()
            except (ApiError, CommandError) as error:
                name = step.__name__.replace("_", " ")
                return [*checks, Check(name=name, ok=False, detail=f"{error} ({error.reason})")]
    return checks


def _nothing_left(state: RunState) -> Check:
    left = [name for name, part in state.parts.items() if part.pid and Path(f"/proc/{part.pid}").exists()]
    return Check(name="everything stopped", ok=not left, detail=", ".join(left) or "no process is left")
