"""Fixtures of the scheduler's component tests."""

from collections.abc import AsyncIterator

import pytest

from tests.component.scheduler.world import World, make_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A scheduler with short times."""
    async with make_world(lost_grace_s=0.2, no_worker_wait_s=0.2, ticket_ttl_s=5.0, start_grace_s=0.1) as made:
        yield made
