"""The commands `up` and `down`."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from downstack.cli.output import console, print_json
from downstack.cli.progress import View, restart_lines, view_for
from downstack.cli.session import DataDirOption, JsonOption
from downstack.local import control
from downstack.local.config import Engine, LocalConfig, default_engine, parse_models
from downstack.local.folder import DataFolder, find_folder
from downstack.local.state import Phase, RunState

EngineOption = Annotated[Engine | None, typer.Option("--engine", help="Default: vllm where it is installed, else sim.")]


def up(
    engine: EngineOption = None,
    workers: Annotated[int, typer.Option(help="Workers for each model.")] = 1,
    schedulers: Annotated[int, typer.Option(help="Schedulers that share the workers.")] = 1,
    models: Annotated[str, typer.Option(help="NAME=FOLDER,NAME=FOLDER. Default: the packaged model.")] = "",
    port: Annotated[int, typer.Option(help="The router's port. Default: a free one.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Start everything on this machine."""
    config = LocalConfig(
        data_dir=find_folder(data_dir, start=Path.cwd()),
        engine=engine or default_engine(),
        workers=workers,
        schedulers=schedulers,
        models=parse_models(models) if models else {},
        port=port,
    )
    folder = DataFolder(config.data_dir)
    with closing(view_for(console(), json=json)) as view:
        if not detach:
            control.run_here(config, on_change=_Attached(folder, view, json=json).show)
            return
        control.start_detached(config, on_change=view.show)
    _announce(folder, folder.running(), json=json)


class _Attached:
    """What is shown while we stay: the start, how to call it, then what dies and comes back."""

    def __init__(self, folder: DataFolder, view: View, *, json: bool) -> None:
        self._folder = folder
        self._view = view
        self._json = json
        self._last = RunState()

    def show(self, state: RunState) -> None:
        last, self._last = self._last, state
        if state.phase is Phase.READY and last.phase is Phase.STARTING:
            self._view.close()
            _announce(self._folder, state, json=self._json)
        elif state.phase in {Phase.STARTING, Phase.FAILED}:
            self._view.show(state)
        elif not self._json:
            if state.phase is Phase.STOPPING and last.phase is not Phase.STOPPING:
                console().print("Stopping …")
            for line in restart_lines(last, state):
                console().print(line, markup=False)


def _announce(folder: DataFolder, state: RunState, *, json: bool) -> None:
    if json:
        print_json(control.summary(folder, state))
        return
    router = state.endpoints["router"]
    out = console()
    out.print(f"\nReady after {state.ready_s:.1f} s: {', '.join(state.models)} at {router}", style="bold green")
    key = f"$(cat {folder.key_file})"
    request = f'{{"spec": {{"model": "{state.models[0]}", "messages": [{{"role": "ROLE_USER", "content": "Hello"}}]}}}}'
    out.print("\nAsk it:")
    out.print('  downstack generate "What is the capital of France?"', markup=False)
    out.print("  downstack chat")
    out.print(f"\nWith any gRPC client (the API key is in {folder.key_file}):", markup=False)
    out.print(
        f"  grpcurl -plaintext -H \"authorization: Bearer {key}\" -d '{request}' \\\n"
        f"    {router} downstack.inference.v1.InferenceService/GenerateOnce",
        markup=False,
    )
    out.print("\nSee it: downstack status, downstack logs, downstack events tail. Stop it: downstack down", style="dim")


def down(data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Stop what `up` started."""
    folder = DataFolder(find_folder(data_dir, start=Path.cwd()))
    stopped = control.stop(folder)
    if json:
        print_json({"stopped": stopped})
    else:
        console().print("Stopped." if stopped else f"Nothing runs in {folder.path}.", markup=False)
