"""What `downstack up` was asked to run, and the defaults of it."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from downstack.local.layout import LocalError

MAX_WORKERS = 16
MAX_SCHEDULERS = 8


class Engine(StrEnum):
    """What the workers run."""

    VLLM = "vllm"
    SIM = "sim"


PACKAGED_MODEL = "packaged:smollm2-135m"
"""The model folder that `weights` makes of the packaged SmolLM2."""
SIMULATED_MODEL = "builtin:sim"

_DEFAULT_MODELS: Mapping[Engine, Mapping[str, str]] = {
    Engine.VLLM: {"smollm2-135m": PACKAGED_MODEL},
    Engine.SIM: {"sim-small": SIMULATED_MODEL},
}


def default_engine() -> Engine:
    """The engine to use: vLLM where it is installed, else the simulated one."""
    return Engine.VLLM if importlib.util.find_spec("vllm") else Engine.SIM


def parse_models(text: str) -> dict[str, str]:
    """`name=folder,name=folder` as a mapping. Raises LocalError with one sentence."""
    models: dict[str, str] = {}
    for item in text.split(","):
        name, separator, folder = item.strip().partition("=")
        if not (separator and name and folder):
            raise LocalError(f"--models takes NAME=FOLDER,NAME=FOLDER; {item.strip()!r} is not of that form")
        if name in models:
            raise LocalError(f"--models names {name!r} twice")
        models[name] = folder
    return models


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What to run.

    Attributes:
        data_dir: The folder that everything is kept in.
        engine: What the workers run.
        workers: Workers for each model.
        schedulers: Schedulers that share the workers.
        models: Model folder, or the name of a packaged one, by model name.
        port: The router's port on the loopback interface; 0 takes a free one.
        start_timeout_s: How long one part may take to become ready.
        drain_s: How long a service may finish what it runs when it is asked to stop.
        tick_s: How often the state of a process is looked at.
        max_log_bytes: The size at which a service's log is cut; one older piece is kept.
    """

    data_dir: Path
    engine: Engine
    workers: int = 1
    schedulers: int = 1
    models: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    start_timeout_s: float = 600.0
    drain_s: float = 5.0
    tick_s: float = 0.1
    max_log_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise LocalError(f"--workers must be 1 to {MAX_WORKERS}, not {self.workers}")
        if not 1 <= self.schedulers <= MAX_SCHEDULERS:
            raise LocalError(f"--schedulers must be 1 to {MAX_SCHEDULERS}, not {self.schedulers}")
        if not 0 <= self.port < 65536:
            raise LocalError(f"--port must be 0 to 65535, not {self.port}")
        if self.engine is Engine.VLLM and default_engine() is not Engine.VLLM:
            raise LocalError("vLLM is not installed here: run `make setup`, or use --engine sim")

    @property
    def served_models(self) -> Mapping[str, str]:
        """The models asked for, or the engine's default."""
        return self.models or _DEFAULT_MODELS[self.engine]

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "data_dir": str(self.data_dir)})

    @classmethod
    def from_json(cls, text: str) -> "LocalConfig":
        fields = json.loads(text)
        return cls(**{**fields, "data_dir": Path(fields["data_dir"]), "engine": Engine(fields["engine"])})
