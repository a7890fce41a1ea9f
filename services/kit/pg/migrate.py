"""Ordered SQL files of a package, each applied to a database exactly once."""

import dataclasses
import hashlib
import importlib.resources
import re

import asyncpg

from services.kit.errors import StartupError
from services.kit.pg.faults import fault_of

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
# One number for all packages: two migrations at once could deadlock on each other's tables. ("downstack" in ASCII.)
_LOCK = 0x646F776E7374616B
_LOCK_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 10
_STATEMENT_TIMEOUT_S = 600

# CREATE SCHEMA needs the right to create even where the schema exists, so it is asked for first.
_JOURNAL = """
DO $$ BEGIN
  IF to_regnamespace('migrations') IS NULL THEN CREATE SCHEMA migrations; END IF;
END $$;
CREATE TABLE IF NOT EXISTS migrations.applied (
  package    text        NOT NULL,
  version    text        NOT NULL,
  name       text        NOT NULL,
  checksum   text        NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (package, version)
);
"""


class MigrationError(StartupError):
    """The database and the package's migrations do not fit together. The message says how."""


@dataclasses.dataclass(frozen=True)
class Migration:
    """One file: `NNNN_name.sql`."""

    version: str
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(owner_dsn: str, package: str) -> list[str]:
    """Apply what is missing of `package`'s folder `migrations`, and return the names of the files applied.

    `package` is the service's package, such as "services.scheduler". Each file runs in a transaction of its own, in
    the order of their numbers, under one lock: calling it twice, or from several processes at once, is harmless.
    Raises MigrationError if an applied file was changed since or is gone, DownstackError if the server cannot be used.
    """
    wanted = load_migrations(package)
    try:
        connection = await asyncpg.connect(owner_dsn, timeout=_CONNECT_TIMEOUT_S, command_timeout=_STATEMENT_TIMEOUT_S)
        try:
            # The lock belongs to the session: it ends with the connection, however that ends.
            await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'")
            await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
            await connection.execute(_JOURNAL)
            return await _apply(connection, package, wanted)
        finally:
            await connection.close(timeout=_CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        fault = fault_of(error)
        if fault is None:
            raise
        raise fault from error


def load_migrations(package: str) -> list[Migration]:
    """The migrations of a package in order. Raises MigrationError for a misnamed file or a number used twice."""
    found: list[Migration] = []
    for file in importlib.resources.files(package).joinpath("migrations").iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE.fullmatch(file.name)
        if match is None:
            raise MigrationError(f"{package}: {file.name} is not named NNNN_name.sql.")
        found.append(Migration(version=match[1], name=file.name, sql=file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    versions = [migration.version for migration in found]
    if len(set(versions)) != len(versions):
        raise MigrationError(f"{package}: a migration number is used twice.")
    return found


async def _apply(connection: asyncpg.Connection, package: str, wanted: list[Migration]) -> list[str]:
    rows = await connection.fetch("SELECT version, name, checksum FROM migrations.applied WHERE package = $1", package)
    missing = pending(package, wanted, {row["version"]: (row["name"], row["checksum"]) for row in rows})
    for migration in missing:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO migrations.applied (package, version, name, checksum) VALUES ($1, $2, $3, $4)",
                package,
                migration.version,
                migration.name,
                migration.checksum,
            )
    return [migration.name for migration in missing]


def pending(package: str, wanted: list[Migration], applied: dict[str, tuple[str, str]]) -> list[Migration]:
    """What is still to apply; `applied` maps a version to its file's name and checksum."""
    known = {migration.version: migration for migration in wanted}
    for version, (name, checksum) in sorted(applied.items()):
        if version not in known:
            raise MigrationError(f"The database has {package} {name}, which this version does not know: it is newer.")
        if known[version].checksum != checksum:
            raise MigrationError(f"{package} {name} was changed after it had been applied to this database.")
    return [migration for migration in wanted if migration.version not in applied]
