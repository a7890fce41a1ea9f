"""The Dockerfile builds every service, without a privilege at run time and from locked packages only."""

import re
from pathlib import Path

import pytest

from tests.unit.deploy import compose

FILE = compose.ROOT / "deploy/Dockerfile"


def stages() -> dict[str, list[str]]:
    """The instructions of each stage by its name; continued lines are one instruction."""
    text = re.sub(r"\\\n\s*", " ", FILE.read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"FROM \S+ AS (\S+)", line):
            name = match[1]
            found[name] = []
        elif line and not line.startswith("#") and name:
            found[name].append(line)
    return found


def test_it_has_a_target_for_each_kind_of_machine() -> None:
    """The targets that the compose file asks for exist; both take the service as an argument."""
    asked = {container["build"]["target"] for _, container in compose.ours().values()}

    assert asked == {"cpu", "gpu"}
    assert asked <= set(stages())
    for target in asked:
        assert any(line.startswith("ARG SERVICE") for line in stages()[target]), target


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_it_runs_without_privileges(target: str) -> None:
    """The last user is not root, and the service gets the signals itself."""
    lines = stages()[target]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    (entry,) = [line for line in lines if line.startswith("ENTRYPOINT ")]

    assert users[-1:] == ["downstack"]
    assert "exec python -m services.${SERVICE}" in entry


def test_it_installs_locked_packages_only() -> None:
    """Each pip install checks hashes and resolves nothing, from a requirements file that is there."""
    runs = [line for lines in stages().values() for line in lines if "pip install" in line]
    files = [name for line in runs for name in re.findall(r"-r ([\w./-]+)", line)]

    assert runs
    assert [line for line in runs if "--require-hashes" not in line or "--no-deps" not in line] == []
    assert set(files) == {"requirements/services.txt", "requirements/models.txt", "requirements/vllm-gpu.txt"}
    assert [name for name in files if not (compose.ROOT / name).is_file()] == []


def test_it_gets_what_it_copies() -> None:
    """What is copied from the checkout exists, and is not kept out of the build."""
    sources = [
        source
        for lines in stages().values()
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    let_in = re.findall(r"^!(\S+)", Path(f"{FILE}.dockerignore").read_text(encoding="utf-8"), re.MULTILINE)

    assert [source for source in sources if not (compose.ROOT / source).exists()] == []
    assert {source.split("/")[0] for source in sources} == set(let_in)


@pytest.mark.parametrize("service", compose.SERVICES)
def test_every_service_can_be_its_argument(service: str) -> None:
    """`python -m services.NAME` exists for each service."""
    assert (compose.ROOT / "services" / service / "__main__.py").is_file()
