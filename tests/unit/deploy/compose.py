"""docker-compose.yml as a container engine reads it, and the settings classes behind its variables."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from services.kit.settings import ServiceSettings

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker-compose.yml"
SERVICES = ("router", "scheduler", "retriever", "worker")
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def load() -> dict[str, Any]:
    """The file with its variables at their defaults."""
    text = _VARIABLE.sub(lambda match: match[2], FILE.read_text(encoding="utf-8"))
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def containers() -> dict[str, dict[str, Any]]:
    """The containers by name."""
    found = load()["services"]
    assert isinstance(found, dict)
    return found


def ours() -> dict[str, tuple[str, dict[str, Any]]]:
    """The containers that run our services: the service and the container by name."""
    return {
        name: (container["build"]["args"]["SERVICE"], container)
        for name, container in containers().items()
        if "build" in container
    }


def settings_of(service: str) -> type[ServiceSettings]:
    """The settings class of a service."""
    module = importlib.import_module(f"services.{service}.settings")
    prefix = f"DOWNSTACK_{service.upper()}_"
    (found,) = {
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, ServiceSettings)
        and member.model_config.get("env_prefix") == prefix
    }
    return found


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a container, as strings."""
    return {name: str(value) for name, value in container.get("environment", {}).items()}


def seconds(duration: str) -> float:
    """A duration of the compose file, such as `40s` or `10m`."""
    match = re.fullmatch(r"(\d+)([smh])", duration)
    assert match, duration
    return float(match[1]) * _SECONDS[match[2]]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])
