"""A call to the engine that ends when the engine is lost: one that hangs would never answer."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from services.kit.errors import DownstackError, Reason
from services.worker.app.engine_life import EngineLife
from services.worker.ports import Engine

_T = TypeVar("_T")
_WATCH_S = 0.25


async def on_engine(life: EngineLife, call: Callable[[Engine], Coroutine[Any, Any, _T]]) -> _T:
    """What the call returns on the engine that runs now. Raises what it raises, and DownstackError ENGINE_DEAD."""
    engine = life.engine
    task = asyncio.create_task(call(engine))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_WATCH_S)
            if not task.done() and (life.engine is not engine or not life.healthy):
                raise DownstackError(Reason.ENGINE_DEAD, "The engine was lost.", retry_after_s=1.0)
        return task.result()
    finally:
        task.cancel()
