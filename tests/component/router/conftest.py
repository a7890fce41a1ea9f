"""Fixtures of the router's component tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from tests.component.router.world import World, make_world


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[World]]:
    """A function that makes a world with so many workers; further arguments are settings of the router."""
    return partial(make_world, tmp_path)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A router with one worker."""
    async with make_world(tmp_path) as made:
        yield made
