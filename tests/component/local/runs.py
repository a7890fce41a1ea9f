"""Plans of stand-in services, and what tests look at."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil
from downstack.local.config import Engine, LocalConfig
from downstack.local.folder import DataFolder
from downstack.local.parts import ServicePart
from downstack.local.ports import choose_ports
from downstack.local.process import Command
from downstack.local.state import RunState
from downstack.local.supervisor import Kept, Step

STAND_IN = Path(__file__).with_name("stand_in.py")


class StandInPlan:
    """Services by name and mode, started together and stopped one after the other."""

    def __init__(
        self,
        folder: DataFolder,
        config: LocalConfig,
        modes: dict[str, str],
        *,
        after: dict[str, set[str]] | None = None,
        steps: dict[str, Callable[[], Awaitable[None]]] | None = None,
    ) -> None:
        at = choose_ports(list(modes), last={}, fixed={})
        self.kept: Sequence[Kept] = [
            Kept(
                part=_service(name, mode, address=at[name], folder=folder, config=config),
                after=frozenset((after or {}).get(name, ())),
            )
            for name, mode in modes.items()
        ]
        self.steps: Sequence[Step] = [
            Step(name=name, after=frozenset((after or {}).get(name, ())), run=run)
            for name, run in (steps or {}).items()
        ]
        self.stop_order: Sequence[frozenset[str]] = [frozenset({name}) for name in modes]

    def state(self) -> RunState:
        return RunState(engine="sim")


def _service(name: str, mode: str, *, address: str, folder: DataFolder, config: LocalConfig) -> ServicePart:
    log = folder.logs / f"{name}.log"
    return ServicePart(
        name,
        address=address,
        metrics="",
        log=log,
        command=lambda: Command(argv=[sys.executable, str(STAND_IN), address, mode], env={}, log=log),
        timeout_s=config.start_timeout_s,
        tick_s=config.tick_s,
    )


def config_for(path: Path) -> LocalConfig:
    return LocalConfig(data_dir=path, engine=Engine.SIM, start_timeout_s=20, drain_s=0.5, tick_s=0.02)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
