"""The local server's life: started, killed, found again, moved, refused."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from downstack.local.layout import DataFolderVersionError
from downstack.local.postgres import LocalPostgres

FAST = {"fsync": "off", "shared_buffers": "16MB"}


@pytest.fixture(scope="module")
def folder(short_tmp: Path) -> Path:
    """A folder so deep that no Unix socket's path could name a file in it."""
    return short_tmp / ("deep-" * 20) / "pg"


@pytest.fixture
def server(folder: Path) -> Iterator[LocalPostgres]:
    local = LocalPostgres(folder, settings=FAST)
    local.start()
    yield local
    local.stop()


async def _value(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_has_the_extension_and_listens_on_no_port(server: LocalPostgres) -> None:
    assert await _value(server.app_dsn, "SELECT '[1,2]'::vector <-> '[1,4]'::vector") == 2.0
    assert await _value(server.owner_dsn, "SHOW listen_addresses") == ""
    assert await _value(server.owner_dsn, "SELECT current_user") == "downstack_owner"


async def test_starting_again_finds_the_running_server(server: LocalPostgres, folder: Path) -> None:
    again = LocalPostgres(folder, settings=FAST)
    again.start()

    assert again.pid == server.pid
    assert again.app_dsn == server.app_dsn


async def test_it_starts_after_it_was_killed(server: LocalPostgres, folder: Path) -> None:
    killed = server.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    psutil.Process(killed).wait(10)
    again = LocalPostgres(folder, settings=FAST)
    again.start()

    assert again.pid not in {None, killed}
    assert await _value(again.app_dsn, "SELECT 1") == 1
    again.stop()
    assert not again.running()


async def test_a_pid_file_that_names_another_process_does_not_stop_it(folder: Path) -> None:
    """Pids are used again: after a reboot, the pid in a left-over file may be anybody's."""
    (folder / "pgdata" / "postmaster.pid").write_text(f"{os.getpid()}\n{folder}/pgdata\n1\n5432\n/tmp\n\n0 0\nready\n")
    server = LocalPostgres(folder, settings=FAST)
    server.start()

    assert server.pid != os.getpid()
    assert await _value(server.app_dsn, "SELECT 1") == 1
    server.stop()


async def test_it_listens_on_the_loopback_port_if_asked(folder: Path) -> None:
    server = LocalPostgres(folder, port=0, settings=FAST)
    server.start()

    assert "@127.0.0.1:" in server.app_dsn
    assert await _value(server.app_dsn, "SHOW listen_addresses") == "127.0.0.1"
    server.stop()


async def test_stopping_ends_every_process_and_may_be_repeated(folder: Path) -> None:
    server = LocalPostgres(folder, settings=FAST)
    server.start()
    assert server.pid is not None
    tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    server.stop()
    server.stop()

    assert not any(process.is_running() for process in tree)
    assert server.pid is None


def test_a_folder_of_another_postgresql_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "pgdata").mkdir()
    (tmp_path / "pgdata" / "PG_VERSION").write_text("16\n")

    with pytest.raises(DataFolderVersionError, match="belongs to PostgreSQL 16, this Downstack runs 18"):
        LocalPostgres(tmp_path).start()
    assert sorted(path.name for path in (tmp_path / "pgdata").iterdir()) == ["PG_VERSION"]


def test_a_folder_of_another_layout_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "DOWNSTACK_LAYOUT").write_text("99\n")

    with pytest.raises(DataFolderVersionError, match="has layout 99"):
        LocalPostgres(tmp_path).start()
    assert not (tmp_path / "pgdata").exists()


def test_passwords_are_for_their_owner_only(folder: Path) -> None:
    assert (folder / "passwords.json").stat().st_mode & 0o077 == 0
