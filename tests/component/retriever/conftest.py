"""A migrated database for each module, and a running retriever with empty tables for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from downstack.local.postgres import DatabaseAddress

from tests.component.retriever.world import World, retriever_settings, running
from tests.conftest import MakeDatabase


@pytest.fixture(scope="module")
async def address(make_database: MakeDatabase) -> DatabaseAddress:
    return await make_database("services.retriever")


@pytest.fixture
async def world(address: DatabaseAddress, tmp_path: Path) -> AsyncIterator[World]:
    owner = await asyncpg.connect(address.owner_dsn)
    await owner.execute("TRUNCATE retrieval.collections, retrieval.grants, retrieval.documents, retrieval.chunks")
    await owner.close()
    async with running(retriever_settings(address, tmp_path), address) as started:
        yield started
