"""Real servers for all tests: one PostgreSQL and one Kafka broker per session, a fresh database or topic per need."""

import importlib.util
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from downstack.local.kafka import LocalKafka
from downstack.local.postgres import DatabaseAddress, LocalPostgres

from services.kit.pg.migrate import migrate

# Short, and outside pytest's own folders, which are closed to the user that PostgreSQL runs as.
_PREFIX = "dst-"
KAFKA_JARS = Path(__file__).resolve().parents[1] / ".tools" / "kafka" / "libs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of the real engine where it is not installed or not wanted."""
    if os.environ.get("DOWNSTACK_TEST_ENGINE") == "sim":
        reason = "ENGINE=sim leaves out the tests of the real engine"
    elif importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed: run `make setup` with ENGINE=vllm"
    else:
        return
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder for servers and sockets, gone when the session ends."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(short_tmp: Path) -> Iterator[LocalPostgres]:
    """One PostgreSQL for the session. It keeps nothing, so it need not wait for the disk."""
    server = LocalPostgres(short_tmp / "pg", settings={"fsync": "off", "shared_buffers": "64MB"})
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka(short_tmp: Path) -> Iterator[LocalKafka]:
    """One Kafka broker for the session, without topics."""
    broker = LocalKafka(short_tmp / "kafka", jars_dir=KAFKA_JARS)
    broker.start(timeout_s=100)
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, postgres: LocalPostgres) -> DatabaseAddress:
    """An empty database of the test module's own, with Downstack's roles."""
    module = re.sub(r"\W+", "_", request.module.__name__.rpartition(".")[2]).lower()[:30]
    return postgres.create_database(f"t_{module}_{uuid.uuid4().hex[:8]}")


MakeDatabase = Callable[..., Awaitable[DatabaseAddress]]


@pytest.fixture(scope="session")
def make_database(postgres: LocalPostgres) -> MakeDatabase:
    """A function that makes a fresh database and applies the migrations of the packages it is given."""

    async def make(*packages: str) -> DatabaseAddress:
        address = postgres.create_database(f"t_{uuid.uuid4().hex[:12]}")
        for package in packages:
            await migrate(address.owner_dsn, package)
        return address

    return make
