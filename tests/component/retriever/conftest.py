"""A fresh database and a running retriever for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.component.retriever.world import World, retriever_settings, running
from tests.conftest import MakeDatabase


@pytest.fixture
async def world(make_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[World]:
    address = await make_database("services.retriever")
    async with running(retriever_settings(address, tmp_path), address) as started:
        yield started
