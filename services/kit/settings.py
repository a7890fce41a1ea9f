"""Settings of a service: typed, from environment and a TOML file, and everything that is wrong with them at once."""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

_SHOWN_CHARS = 80


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("must be HOST:PORT")
    return value


def _address_or_empty(value: str) -> str:
    return _address(value) if value else value


def _secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 16:
        raise ValueError("must be at least 16 characters long")
    return value


def _addresses(value: str) -> str:
    return ",".join(_address(each.strip()) for each in value.split(","))


Address = Annotated[str, AfterValidator(_address)]
OptionalAddress = Annotated[str, AfterValidator(_address_or_empty)]
Addresses = Annotated[str, AfterValidator(_addresses)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
LogLevel = Literal["debug", "info", "warning", "error"]


class _Base(BaseSettings):
    """Reads nothing by itself, so that a constructor call in a test means what it says; `load` reads."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class ServiceSettings(_Base):
    """What every service has.

    A service's own class sets `model_config = SettingsConfigDict(env_prefix="DOWNSTACK_<SERVICE>_")` and documents each
    field with a docstring below it.
    """

    listen: Address = "127.0.0.1:50051"
    """Where gRPC listens, HOST:PORT."""

    metrics_listen: OptionalAddress = "127.0.0.1:0"
    """Where Prometheus reads metrics, HOST:PORT. Empty: nowhere."""

    log_level: LogLevel = "info"
    """The least level of the log. At `debug` it has the messages of unexpected exceptions, which may quote data."""

    drain_s: float = Field(default=20.0, gt=0, le=3600)
    """Seconds that running calls have to finish after a signal to stop."""

    drain_delay_s: float = Field(default=0.0, ge=0, le=300)
    """Seconds between reporting NOT_SERVING and refusing calls, for load balancers to notice."""

    reflection: bool = True
    """Whether gRPC reflection is served."""

    reuse_port: bool = False
    """Whether several processes may listen on the same port (SO_REUSEPORT)."""

    default_deadline_s: float = Field(default=300.0, gt=0, le=86_400)
    """Seconds that a call may take where the caller sets no deadline."""

    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=2**29 - 1)
    """The largest request that is accepted, in bytes; of a stream of requests, a quarter of the largest message."""

    max_in_flight: int = Field(default=4096, ge=1)
    """The most calls that run at once. More are refused with OVERLOADED."""

    service_secret: Secret
    """Signs the assertions and tickets between the services; the same for all of them, at least 16 characters."""

    @property
    def secret_bytes(self) -> bytes:
        """The service secret as a key."""
        return self.service_secret.get_secret_value().encode()

    @classmethod
    def load(cls, argv: Sequence[str]) -> Self:
        """Settings from the environment, above those of a TOML file (--config), above the defaults.

        Prints and leaves for --help and --print-config (status 0), and with everything that is wrong (status 2).
        """
        options = _parser(cls).parse_args(argv)
        path = options.config or os.environ.get(f"{_prefix(cls)}CONFIG", "")
        from_file, problems = _read_file(path)
        values = from_file | _LenientEnv(cls)()
        problems += _unknown_variables(cls)
        settings = None
        try:
            settings = cls(**values)
        except ValidationError as error:
            problems += [_problem(cls, entry, from_file=from_file, path=path) for entry in error.errors()]
        if problems or settings is None:
            lines = "".join(f"  {problem}\n" for problem in problems)
            sys.stderr.write(f"The settings are not valid:\n{lines}")
            raise SystemExit(2)
        if options.print_config:
            sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
            raise SystemExit(0)
        return settings


class PostgresSettings(_Base):
    """For services with tables."""

    postgres_dsn: SecretStr
    """The database as the application's role, postgresql://…"""

    postgres_owner_dsn: SecretStr | None = None
    """The database as the owner of the schemas, for migrations at start. None: somebody else migrates."""

    pool_min: int = Field(default=1, ge=0, le=1000)
    """Connections that are kept open."""

    pool_max: int = Field(default=8, ge=1, le=1000)
    """The most connections."""

    acquire_timeout_s: float = Field(default=2.0, gt=0)
    """Seconds that a call waits for a connection before it is refused."""


class EventSettings(_Base):
    """For services that write or read events."""

    kafka_bootstrap: str
    """Kafka's bootstrap servers, HOST:PORT[,HOST:PORT…]."""

    outbox_path: Path
    """The file of the outbox, on a disk that survives a restart."""

    outbox_max_events: int = Field(default=1_000_000, ge=1)
    """The most events that wait for Kafka; at the bound new work is refused with JOURNAL_FULL."""

    outbox_max_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024 * 1024)
    """The most bytes of events that wait for Kafka."""


class AccountSettings(_Base):
    """For services that accept API keys."""

    key_pepper: Secret
    """Keys the stored digests of API keys; the same for all services, at least 16 characters."""

    bootstrap_admin_key: Secret | None = None
    """An operator's key with every scope and no tenant, to create the first tenant with. None: there is none."""

    key_cache_s: float = Field(default=10.0, ge=0, le=300)
    """Seconds after which a revoked key has stopped working everywhere."""


class _LenientEnv(EnvSettingsSource):
    """Leaves a value that is no JSON as it is, for the validation to report it beside all others."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _prefix(cls: type[BaseSettings]) -> str:
    return str(cls.model_config.get("env_prefix", "")).upper()


def _parser(cls: type[BaseSettings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Runs a service. Settings come from the environment, then from the file, then from the defaults."
        f"\n\n{_table(cls)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help=f"a TOML file of settings; also {_prefix(cls)}CONFIG")
    parser.add_argument("--print-config", action="store_true", help="print the settings in use, without secrets")
    return parser


def _table(cls: type[BaseSettings]) -> str:
    lines = []
    for name, field in cls.model_fields.items():
        default = "required" if field.is_required() else f"default {_shown_default(field)}"
        lines.append(f"  {_prefix(cls)}{name.upper()}  ({default})\n      {field.description}")
    return "\n".join(lines)


def _shown_default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else '""' if value == "" else str(value)


def _read_file(path: str) -> tuple[dict[str, Any], list[str]]:
    if not path:
        return {}, []
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8")), []
    except OSError as error:
        return {}, [f"{path}: {error.strerror}"]
    except ValueError as error:
        return {}, [f"{path}: not TOML: {error}"]


def _unknown_variables(cls: type[BaseSettings]) -> list[str]:
    prefix = _prefix(cls)
    known = {f"{prefix}{name.upper()}" for name in cls.model_fields} | {f"{prefix}CONFIG"}
    return [
        f"{name}: there is no such setting"
        for name in sorted(os.environ)
        if prefix and name.upper().startswith(prefix) and name.upper() not in known
    ]


def _problem(cls: type[BaseSettings], entry: ErrorDetails, *, from_file: Mapping[str, Any], path: str) -> str:
    name = str(entry["loc"][0]) if entry["loc"] else ""
    variable = f"{_prefix(cls)}{name.upper()}"
    where = f"{name} in {path}" if name in from_file and variable not in os.environ else variable
    below = "".join(f".{part}" for part in entry["loc"][1:])
    if entry["type"] == "extra_forbidden":
        return f"{where}{below}: there is no such setting"
    if entry["type"] == "missing":
        return f"{where}{below}: is required: {_description(cls, name)}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{where}{below}: {message}{_shown(cls, name, entry['input'])}"


def _description(cls: type[BaseSettings], name: str) -> str:
    field = cls.model_fields.get(name)
    return (field.description if field else None) or "see --help"


def _shown(cls: type[BaseSettings], name: str, value: object) -> str:
    """The refused value, unless it is a secret or may hold one."""
    field = cls.model_fields.get(name)
    if field is None or not isinstance(value, str | int | float) or _is_secret(field.annotation):
        return ""
    return f" (it is {str(value)[:_SHOWN_CHARS]!r})"


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(argument) for argument in get_args(annotation))
