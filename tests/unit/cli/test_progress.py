from dataclasses import replace

from downstack.cli.progress import Lines, restart_lines
from downstack.local.state import PartState, Phase, RunState


def run_with(state: PartState, **fields: object) -> RunState:
    return RunState(phase=Phase.READY).with_part("router", state=state, **fields)


def test_each_change_is_one_line() -> None:
    """The same state twice is told once, and what only waits is not told."""
    lines: list[str] = []
    view = Lines(lines.append)
    for state in (PartState.WAITING, PartState.STARTING, PartState.STARTING):
        view.show(run_with(state))
    view.show(run_with(PartState.READY, started_s=1.24, address="127.0.0.1:1"))
    assert lines == ["router: starting", "router: ready in 1.2 s at 127.0.0.1:1"]


def test_a_death_and_a_return_are_told() -> None:
    well = run_with(PartState.READY, started_s=1.0)
    dead = run_with(PartState.RESTARTING, detail="router was ended by SIGKILL; starting it again in 0.2 s")
    assert restart_lines(well, dead) == ["router was ended by SIGKILL; starting it again in 0.2 s"]
    assert restart_lines(dead, well) == ["router is ready again after 1.0 s"]
    assert restart_lines(well, well) == []


def test_nothing_is_told_of_a_start_or_a_stop() -> None:
    well = run_with(PartState.READY)
    starting = replace(well, phase=Phase.STARTING)
    assert restart_lines(starting, well) == []
    assert restart_lines(well, replace(run_with(PartState.STOPPED), phase=Phase.STOPPING)) == []
