"""The data folder of a local run: who holds it, its secrets, its state, its credentials."""

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from downstack.local.layout import DataFolderVersionError, LocalError, claim_folder
from downstack.local.state import RunState

DEFAULT_NAME = ".downstack"
MODELS_NAME = "models"
# Who only asks whether the folder is held holds it for a moment.
_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.05


def find_folder(asked: Path | None, *, start: Path) -> Path:
    """The folder asked for, or the nearest `.downstack` in `start` and above it, or the one to be made in `start`."""
    if asked is not None:
        return asked.absolute()
    for place in (start, *start.parents):
        if (place / DEFAULT_NAME).is_dir():
            return place / DEFAULT_NAME
    return start / DEFAULT_NAME


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What the services of one data folder share and nobody else knows."""

    service_secret: str = field(repr=False)
    key_pepper: str = field(repr=False)
    bootstrap_admin_key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The key that the command line uses by default."""

    api_key: str = field(repr=False)
    key_id: str
    tenant: str
    tenant_id: str


class DataFolder:
    """One data folder. Reading works at any time; what writes says who may call it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.credentials_file = path / "credentials"
        self._secrets = path / "secrets"
        self.key_file = self._secrets / "api_key"
        self._state_file = path / "run.json"
        self._lock_file = path / "lock"

    def claim(self) -> None:
        """Make the folder, or raise DataFolderVersionError where it is another version's or something else."""
        if self.path.exists() and not self.path.is_dir():
            raise LocalError(f"{self.path} is a file, not a data folder")
        ours = any(self.path.glob("DOWNSTACK_*")) or (self.path / MODELS_NAME).is_dir()
        if self.path.is_dir() and any(self.path.iterdir()) and not ours:
            raise DataFolderVersionError(f"{self.path} is not empty and not a data folder of Downstack")
        claim_folder(self.path)
        self.logs.mkdir(exist_ok=True)
        self._secrets.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the folder for one supervisor, as long as this process lives."""
        with self._lock_file.open("a") as lock:
            if not any(_try_lock(lock) for _ in _moments()):
                raise LocalError(f"Downstack runs already in {self.path}; `downstack status` shows it")
            yield

    def held(self) -> bool:
        """Whether a supervisor holds the folder now."""
        if not self._lock_file.exists():
            return False
        with self._lock_file.open("a") as lock:
            return not _try_lock(lock)

    def secrets(self) -> Secrets:
        """The folder's secrets, made at the first call. For its holder."""
        key = f"ds_live_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
        return Secrets(
            service_secret=self._secret("service_secret", secrets.token_urlsafe(32)),
            key_pepper=self._secret("key_pepper", secrets.token_urlsafe(32)),
            bootstrap_admin_key=self._secret("bootstrap_admin_key", key),
        )

    def _secret(self, name: str, fresh: str) -> str:
        file = self._secrets / name
        if not file.exists():
            _write_private(file, fresh)
        return file.read_text(encoding="utf-8").strip()

    def admin_key(self) -> str:
        """The operator's key. Empty where the folder has none, or not for this user."""
        file = self._secrets / "bootstrap_admin_key"
        try:
            return file.read_text(encoding="utf-8").strip()
        except (FileNotFoundError, PermissionError):
            return ""

    def credentials(self) -> Credentials | None:
        """The default credentials, if there are any that this user may read."""
        try:
            return Credentials(**json.loads(self.credentials_file.read_text(encoding="utf-8")))
        except (FileNotFoundError, PermissionError):
            return None

    def save_credentials(self, credentials: Credentials) -> None:
        """For the folder's holder."""
        _write_private(self.key_file, credentials.api_key)
        _write_private(self.credentials_file, json.dumps(asdict(credentials)))

    def state(self) -> RunState | None:
        """The last state that a supervisor wrote. None: there was none yet."""
        try:
            return RunState.from_json(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise DataFolderVersionError(f"{self._state_file} was written by another version of Downstack") from None

    def running(self) -> RunState:
        """The state of the run that holds the folder. Raises LocalError where none does."""
        state = self.state() if self.held() else None
        if state is None:
            raise LocalError(f"Downstack does not run in {self.path}; start it with `downstack up`")
        return state

    def save_state(self, state: RunState) -> None:
        """For the folder's holder."""
        _write_private(self._state_file, state.to_json())


def _moments() -> Iterator[None]:
    for _ in range(_LOCK_TRIES):
        yield
        time.sleep(_LOCK_PAUSE_S)


def _try_lock(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_private(file: Path, content: str) -> None:
    """Replace a file as a whole, readable for its owner only."""
    fresh = file.with_name(f".{file.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:  # noqa: PTH123 -- with a mode
        out.write(content)
    fresh.replace(file)
