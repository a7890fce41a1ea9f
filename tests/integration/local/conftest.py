import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from downstack.local.folder import DataFolder

from tests.integration.local.system import System


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The system on the simulated engine with two workers, started once for all tests here."""
    # Outside pytest's folders, which are closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="dsl-", ignore_cleanup_errors=True) as path:
        system = System(DataFolder(Path(path) / "data"))
        try:
            system.run("up", "--engine", "sim", "--workers", "2", "--detach")
            yield system
        finally:
            system.run("down", check=False)
