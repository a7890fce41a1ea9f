"""docker-compose.yml says what the services' settings say: it is not run here, so a test holds them together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from services.kit.settings import ServiceSettings
from tests.unit.deploy import compose

OURS = sorted(compose.ours())
# Ports of the images that are not ours, as their documentation gives them.
IMAGE_PORTS = {"postgres": 5432, "kafka": 9092, "prometheus": 9090, "grafana": 3000}


def load_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """The settings that a container's variables give."""
    service, container = compose.ours()[name]
    for variable, value in compose.variables(container).items():
        monkeypatch.setenv(variable, value)
    return compose.settings_of(service).load([])


def listening_ports(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The ports that each container listens on."""
    ports = {name: {port} for name, port in IMAGE_PORTS.items()}
    for name in OURS:
        with monkeypatch.context() as patch:
            settings = load_settings(name, patch)
        ports[name] = {compose.port_of(settings.listen), compose.port_of(settings.metrics_listen)}
    return ports


def test_the_file_matches_the_compose_schema() -> None:
    """The published schema of compose files accepts it."""
    command = Path(sys.executable).with_name("check-jsonschema")
    checked = subprocess.run(
        [str(command), "--builtin-schema", "vendor.compose-spec", str(compose.FILE)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_all_services_run_on_the_simulated_engine_without_a_profile() -> None:
    """The four services start by default; vLLM only with the gpu profile, on a reserved device."""
    default = {service for service, container in compose.ours().values() if "profiles" not in container}
    gpu = compose.containers()["worker-gpu"]

    assert default == set(compose.SERVICES)
    assert compose.containers()["worker"]["environment"]["DOWNSTACK_WORKER_ENGINE"] == "sim"
    assert gpu["profiles"] == ["gpu"]
    assert gpu["environment"]["DOWNSTACK_WORKER_ENGINE"] == "vllm"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables have the prefix of their service, and its settings accept all of them together."""
    service, container = compose.ours()[name]
    prefix = f"DOWNSTACK_{service.upper()}_"

    assert [variable for variable in compose.variables(container) if not variable.startswith(prefix)] == []
    load_settings(name, monkeypatch)


@pytest.mark.parametrize("name", OURS)
def test_ports_and_probes_are_those_that_the_service_listens_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published and probed is where the service listens, on all interfaces of its container."""
    settings = load_settings(name, monkeypatch)
    container = compose.ours()[name][1]
    published = [compose.port_of(port) for port in container.get("ports", [])]

    assert set(published) <= {compose.port_of(settings.listen)}
    assert container["healthcheck"]["test"][-1] == f"127.0.0.1:{compose.port_of(settings.listen)}"
    assert settings.listen.startswith("0.0.0.0:")
    assert settings.metrics_listen.startswith("0.0.0.0:")


@pytest.mark.parametrize("name", OURS)
def test_addresses_of_other_containers_are_where_those_listen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names another container names a port that it listens on."""
    ports = listening_ports(monkeypatch)
    values = " ".join(compose.variables(compose.ours()[name][1]).values())
    named = [(host, int(port)) for host, port in re.findall(r"\b([a-z][a-z-]+):(\d+)\b", values) if host != "localhost"]

    assert named
    assert [pair for pair in named if pair[1] not in ports[pair[0]]] == []


@pytest.mark.parametrize("name", OURS)
def test_a_service_has_time_to_drain_before_it_is_killed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grace period is longer than the whole drain."""
    settings = load_settings(name, monkeypatch)
    grace_s = compose.seconds(compose.ours()[name][1]["stop_grace_period"])

    assert grace_s > settings.drain_s + settings.drain_delay_s


@pytest.mark.parametrize("name", OURS)
def test_the_outbox_survives_the_container(name: str) -> None:
    """The outbox lies on a named volume, and the rest of the container is not written to by the service's user."""
    service, container = compose.ours()[name]
    outbox = Path(container["environment"][f"DOWNSTACK_{service.upper()}_OUTBOX_PATH"])
    mounts = dict(volume.split(":")[:2] for volume in container["volumes"])

    assert str(outbox.parent) in mounts.values()
    assert set(mounts) <= set(compose.load()["volumes"])


def test_containers_wait_for_those_that_have_a_health_check() -> None:
    """Each dependency is on a healthy container, and every container has a health check."""
    containers = compose.containers()
    conditions = {
        (name, other): how["condition"]
        for name, container in containers.items()
        for other, how in container.get("depends_on", {}).items()
    }

    assert set(conditions.values()) == {"service_healthy"}
    assert [name for name, container in containers.items() if "healthcheck" not in container] == []
    assert {other for _, other in conditions} <= set(containers)


def test_secrets_are_the_same_everywhere() -> None:
    """All services share the service secret, the pepper and the database's passwords."""
    found: dict[str, set[str]] = {}
    for service, container in compose.ours().values():
        for variable, value in compose.variables(container).items():
            found.setdefault(variable.removeprefix(f"DOWNSTACK_{service.upper()}_"), set()).add(value)

    for shared in ("SERVICE_SECRET", "KEY_PEPPER", "POSTGRES_DSN", "POSTGRES_OWNER_DSN", "KAFKA_BOOTSTRAP"):
        assert len(found[shared]) == 1, shared


def test_only_this_machine_can_reach_the_published_ports() -> None:
    """Development secrets are never open to the network."""
    published = [port for container in compose.containers().values() for port in container.get("ports", [])]

    assert published
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_prometheus_scrapes_where_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of our containers is a target, at its metrics port."""
    scraped = yaml.safe_load((compose.ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    targets = {
        target for job in scraped["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    }
    expected = set()
    for name in OURS:
        with monkeypatch.context() as patch:
            settings = load_settings(name, patch)
        expected.add(f"{name}:{compose.port_of(settings.metrics_listen)}")

    assert targets == expected
