"""Migrations against a real server."""

import asyncio
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from services.kit.errors import DownstackError, Reason
from services.kit.pg.migrate import MigrationError, migrate

FIRST = "CREATE SCHEMA shop; CREATE TABLE shop.items (id int); GRANT USAGE ON SCHEMA shop TO downstack_app;"
SECOND = "INSERT INTO shop.items VALUES (1); INSERT INTO shop.items VALUES (2);"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `shop` with two migrations; the value is the folder of the files."""
    folder = tmp_path / "shop" / "migrations"
    folder.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    (folder / "0001_items.sql").write_text(FIRST)
    (folder / "0002_rows.sql").write_text(SECOND)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    sys.modules.pop("shop", None)
    shutil.rmtree(tmp_path / "shop")


@pytest.fixture
async def fresh(make_database: object) -> DatabaseAddress:
    return await make_database()  # type: ignore[operator]


async def _count(address: DatabaseAddress) -> int:
    connection = await asyncpg.connect(address.owner_dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM shop.items"))
    finally:
        await connection.close()


async def test_files_are_applied_once_in_order(fresh: DatabaseAddress, package: Path) -> None:
    assert await migrate(fresh.owner_dsn, "shop") == ["0001_items.sql", "0002_rows.sql"]
    assert await migrate(fresh.owner_dsn, "shop") == []
    assert await _count(fresh) == 2


async def test_many_at_once_are_as_good_as_one(fresh: DatabaseAddress, package: Path) -> None:
    applied = await asyncio.gather(*(migrate(fresh.owner_dsn, "shop") for _ in range(6)))

    assert sorted(len(names) for names in applied) == [0, 0, 0, 0, 0, 2]
    assert await _count(fresh) == 2


async def test_a_file_that_fails_leaves_nothing_of_itself(fresh: DatabaseAddress, package: Path) -> None:
    (package / "0003_broken.sql").write_text("INSERT INTO shop.items VALUES (3); SELECT nonsense;")

    with pytest.raises(asyncpg.UndefinedColumnError):
        await migrate(fresh.owner_dsn, "shop")
    assert await _count(fresh) == 2

    (package / "0003_broken.sql").write_text("INSERT INTO shop.items VALUES (3);")
    assert await migrate(fresh.owner_dsn, "shop") == ["0003_broken.sql"]
    assert await _count(fresh) == 3


async def test_a_file_changed_after_it_was_applied_is_refused(fresh: DatabaseAddress, package: Path) -> None:
    await migrate(fresh.owner_dsn, "shop")
    (package / "0002_rows.sql").write_text("INSERT INTO shop.items VALUES (9);")

    with pytest.raises(MigrationError, match=r"0002_rows\.sql was changed"):
        await migrate(fresh.owner_dsn, "shop")
    assert await _count(fresh) == 2


async def test_a_database_that_is_ahead_is_refused(fresh: DatabaseAddress, package: Path) -> None:
    await migrate(fresh.owner_dsn, "shop")
    (package / "0002_rows.sql").unlink()

    with pytest.raises(MigrationError, match="newer"):
        await migrate(fresh.owner_dsn, "shop")


async def test_a_misnamed_file_is_refused(fresh: DatabaseAddress, package: Path) -> None:
    (package / "3_more.sql").write_text("SELECT 1")

    with pytest.raises(MigrationError, match="NNNN_name"):
        await migrate(fresh.owner_dsn, "shop")


async def test_the_application_may_not_migrate(fresh: DatabaseAddress, package: Path) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await migrate(fresh.app_dsn, "shop")


async def test_no_server_is_a_dependency_that_is_unavailable(package: Path, tmp_path: Path) -> None:
    with pytest.raises(DownstackError) as caught:
        await migrate(f"postgresql://nobody@/none?host={tmp_path}", "shop")

    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
