"""The Makefile is a menu: every target is shown and calls a script or the command."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy import compose

MAKEFILE = (compose.ROOT / "Makefile").read_text(encoding="utf-8")
SCRIPTS = sorted((compose.ROOT / "deploy/dev").glob("*.sh"))
# Sourced by the others.
SOURCED = {"steps.sh", "inputs.sh"}


def test_help_shows_every_target() -> None:
    """`make` alone prints the menu, and no target is missing from it."""
    shown = subprocess.run(["make", "-C", str(compose.ROOT)], capture_output=True, text=True, check=True).stdout
    (declared,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)

    assert [target for target in declared.split() if f"make {target} " not in shown] == []
    assert "ENGINE" in shown


def test_targets_only_call_scripts() -> None:
    """A recipe line starts a script, a benchmark or the project's command, and does nothing itself."""
    recipes = re.findall(r"^\t@(\.venv/bin/python -m bench\.|\S+)", MAKEFILE, re.MULTILINE)
    commands = {command for command in recipes if command != "awk"}

    assert commands
    assert [command for command in commands if command.startswith(("deploy/", "proto/")) and not _runs(command)] == []
    assert {command for command in commands if not command.startswith(("deploy/", "proto/"))} == {
        ".venv/bin/downstack",
        ".venv/bin/python -m bench.",
    }


def _runs(command: str) -> bool:
    return os.access(compose.ROOT / command, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_valid(script: Path) -> None:
    """bash can parse each script, and those that are run can be."""
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK) is (script.name not in SOURCED)


def test_an_unknown_engine_is_one_sentence() -> None:
    """A bad ENGINE stops the set-up before it does anything."""
    done = subprocess.run(
        [compose.ROOT / "deploy/dev/setup.sh"],
        env={**os.environ, "ENGINE": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == "Error: ENGINE is 'abacus'; it can be vllm or sim.\n"
