"""Settings: where they come from, and how they are refused."""

import json
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import AccountSettings, EventSettings, PostgresSettings, ServiceSettings

SECRET = "correct-horse-battery"


class ExampleSettings(ServiceSettings, PostgresSettings, EventSettings, AccountSettings):
    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_EXAMPLE_")

    models: dict[str, str] = Field(default_factory=dict)
    """Folder of each model by its name."""


class SmallSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_SMALL_")


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DOWNSTACK_SMALL_SERVICE_SECRET", SECRET)
    return monkeypatch


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, cls: type[ServiceSettings] = SmallSettings) -> list[str]:
    with pytest.raises(SystemExit) as caught:
        cls.load(argv)
    assert caught.value.code == 2
    return [line.strip() for line in capsys.readouterr().err.splitlines()[1:]]


def test_defaults_need_only_the_secret(env: pytest.MonkeyPatch) -> None:
    settings = SmallSettings.load([])
    assert (settings.listen, settings.drain_s, settings.reflection) == ("127.0.0.1:50051", 20.0, True)
    assert settings.max_message_bytes == 4 * 1024 * 1024
    assert settings.secret_bytes == SECRET.encode()


def test_the_environment_is_above_the_file(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text('drain_s = 5\nlisten = "0.0.0.0:1"\n')
    env.setenv("DOWNSTACK_SMALL_LISTEN", "[::1]:2")
    for settings in (SmallSettings.load(["--config", str(file)]),):
        assert (settings.drain_s, settings.listen) == (5.0, "[::1]:2")
    env.setenv("DOWNSTACK_SMALL_CONFIG", str(file))
    assert SmallSettings.load([]).drain_s == 5.0


def test_everything_wrong_is_listed_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One start shows all: missing, unknown, out of range, not JSON, from environment and file."""
    file = tmp_path / "example.toml"
    file.write_text('drain_s = "soon"\nnonsense = 1\n')
    for name, value in {
        "LISTEN": "nowhere",
        "MODELS": "{broken",
        "POOL_MAX": "0",
        "TYPO": "1",
        "SERVICE_SECRET": "short-secret",
        "KEY_PEPPER": SECRET,
        "POSTGRES_DSN": "postgresql://u:hunter2@h/db",
    }.items():
        monkeypatch.setenv(f"DOWNSTACK_EXAMPLE_{name}", value)
    lines = refusal(capsys, "--config", str(file), cls=ExampleSettings)
    problems = {line.partition(":")[0]: line for line in lines}
    assert problems.keys() == {
        "DOWNSTACK_EXAMPLE_LISTEN",
        "DOWNSTACK_EXAMPLE_MODELS",
        "DOWNSTACK_EXAMPLE_POOL_MAX",
        "DOWNSTACK_EXAMPLE_TYPO",
        "DOWNSTACK_EXAMPLE_SERVICE_SECRET",
        "DOWNSTACK_EXAMPLE_KAFKA_BOOTSTRAP",
        "DOWNSTACK_EXAMPLE_OUTBOX_PATH",
        f"drain_s in {file}",
        f"nonsense in {file}",
    }
    assert "(it is 'nowhere')" in problems["DOWNSTACK_EXAMPLE_LISTEN"]
    assert "Kafka's bootstrap servers" in problems["DOWNSTACK_EXAMPLE_KAFKA_BOOTSTRAP"]
    assert "short-secret" not in "".join(lines)
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN", "localhost"),
        ("LISTEN", ":50051"),
        ("LISTEN", "localhost:99999"),
        ("METRICS_LISTEN", "x"),
        ("DRAIN_S", "0"),
        ("DRAIN_S", "nan"),
        ("LOG_LEVEL", "loud"),
        ("REFLECTION", "perhaps"),
        ("MAX_MESSAGE_BYTES", "-1"),
        ("DEFAULT_DEADLINE_S", "inf"),
    ],
)
def test_bad_values_are_refused(
    env: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    env.setenv(f"DOWNSTACK_SMALL_{name}", value)
    (line,) = refusal(capsys)
    assert line.startswith(f"DOWNSTACK_SMALL_{name}: ")
    assert line.endswith(f"(it is {value!r})")


def test_a_missing_or_broken_file_is_named(
    env: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("a = ")
    assert "No such file" in refusal(capsys, "--config", str(tmp_path / "none.toml"))[0]
    assert "not TOML" in refusal(capsys, "--config", str(tmp_path / "bad.toml"))[0]


def test_print_config_hides_secrets(env: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        SmallSettings.load(["--print-config"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert json.loads(printed)["service_secret"] == "**********"
    assert SECRET not in printed
    assert SECRET not in repr(SmallSettings.load([]))


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ExampleSettings.load(["--help"])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    for name, field in ExampleSettings.model_fields.items():
        assert field.description, f"{name} has no docstring"
        assert f"DOWNSTACK_EXAMPLE_{name.upper()}" in printed
        assert field.description.partition("\n")[0] in printed


def test_a_constructor_call_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a test, settings are what the test says, whatever the environment holds."""
    monkeypatch.setenv("DOWNSTACK_SMALL_LISTEN", "127.0.0.1:9")
    settings = SmallSettings(service_secret=SECRET)  # type: ignore[arg-type]
    assert settings.listen == "127.0.0.1:50051"
    assert settings.metrics_listen == "127.0.0.1:0"
