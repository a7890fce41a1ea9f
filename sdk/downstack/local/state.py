"""What a local run consists of and how each part is: the content of `run.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any


class PartState(StrEnum):
    """Where a part stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


class Phase(StrEnum):
    """Where the whole run stands."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """One part: a server, a service, or a step of the start.

    Attributes:
        state: Where it stands.
        pid: Its process. 0: none.
        address: Where it listens, host:port. Empty: it does not, or not on TCP.
        metrics: Where its metrics are, host:port. Empty: nowhere.
        log: Its log file. Empty for a step.
        restarts: How often it was started again.
        started_s: How long its last start took.
        detail: One sentence on what happened last.
    """

    state: PartState = PartState.WAITING
    pid: int = 0
    address: str = ""
    metrics: str = ""
    log: str = ""
    restarts: int = 0
    started_s: float = 0.0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """One local run.

    Attributes:
        phase: Where it stands.
        pid: The supervisor's process.
        engine: What the workers run.
        models: The models served.
        endpoints: host:port of `router`, `retriever`, `scheduler` and `kafka`, as far as known.
        started_at: Seconds since 1970.
        ready_s: How long the start took. 0 until it is ready.
        error: Why it failed, in one sentence.
        parts: Each part by name, in the order of the start.
    """

    phase: Phase = Phase.STARTING
    pid: int = 0
    engine: str = ""
    models: tuple[str, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    ready_s: float = 0.0
    error: str = ""
    parts: Mapping[str, PartStatus] = field(default_factory=dict)

    def with_part(self, name: str, **changes: Any) -> "RunState":
        """The same run with a part changed; a new part goes last."""
        part = replace(self.parts.get(name, PartStatus()), **changes)
        return replace(self, parts={**self.parts, name: part})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RunState":
        fields = json.loads(text)
        parts = {
            name: PartStatus(**{**part, "state": PartState(part["state"])}) for name, part in fields["parts"].items()
        }
        phase, models = Phase(fields["phase"]), tuple(fields["models"])
        return cls(**{**fields, "phase": phase, "models": models, "parts": parts})
