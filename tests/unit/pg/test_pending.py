"""Which migrations are still to apply."""

import pytest

from services.kit.pg.migrate import Migration, MigrationError, load_migrations, pending

FIRST = Migration(version="0001", name="0001_first.sql", sql="SELECT 1")
SECOND = Migration(version="0002", name="0002_second.sql", sql="SELECT 2")


def _applied(*migrations: Migration) -> dict[str, tuple[str, str]]:
    return {migration.version: (migration.name, migration.checksum) for migration in migrations}


def test_what_is_not_applied_is_pending_in_order() -> None:
    assert pending("p", [FIRST, SECOND], {}) == [FIRST, SECOND]
    assert pending("p", [FIRST, SECOND], _applied(FIRST)) == [SECOND]
    assert pending("p", [FIRST, SECOND], _applied(FIRST, SECOND)) == []


def test_a_changed_file_is_refused_by_name() -> None:
    changed = Migration(version="0001", name="0001_first.sql", sql="SELECT 3")

    with pytest.raises(MigrationError, match=r"0001_first\.sql was changed"):
        pending("p", [changed, SECOND], _applied(FIRST))


def test_a_database_of_a_newer_version_is_refused() -> None:
    with pytest.raises(MigrationError, match="newer"):
        pending("p", [FIRST], _applied(FIRST, SECOND))


def test_the_accounts_migrations_load_in_order() -> None:
    found = load_migrations("services.kit.accounts")

    assert found[0].name == "0001_accounts.sql"
    assert [migration.version for migration in found] == sorted(migration.version for migration in found)
