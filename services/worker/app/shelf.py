"""The adapters of a worker and the engine that holds them: loaded, withdrawn, and gone with their last lease."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from services.kit.errors import DownstackError, StartupError
from services.worker.app.engine_life import EngineLife
from services.worker.domain.adapters import Adapter, Adapters, Held

_log = structlog.get_logger()


class Shelf:
    """Keeps engine and table alike; one change at a time.

    Args:
        changed: Told whenever other adapters are offered than before.
    """

    def __init__(self, life: EngineLife, *, most: int, changed: Callable[[], None]) -> None:
        self.table = Adapters(most)
        self._life = life
        self._changed = changed
        self._lock = asyncio.Lock()
        self._clearing: set[asyncio.Task[None]] = set()

    async def start(self, adapters: Iterable[Adapter]) -> None:
        """Loads the first ones. Raises StartupError."""
        for adapter in adapters:
            try:
                await self.load(adapter)
            except DownstackError as error:
                raise StartupError(f"The adapter {adapter.name!r} cannot be loaded: {error.message}") from error

    async def load(self, adapter: Adapter) -> None:
        """Offers an adapter, in place of the one of that name.

        Raises:
            DownstackError: METHOD_DISABLED, QUOTA_EXCEEDED, UNSUPPORTED_FEATURE (the engine cannot use it).
        """
        async with self._lock:
            if adapter in self.table.offered:
                return
            self.table.check_room(adapter)
            await self._life.engine.load_adapter(adapter)
            self.table.offer(adapter)
        self._changed()
        self._clear_soon()

    def unload(self, name: str) -> Held:
        """Withdraws an adapter; the engine drops it with its last lease. Raises DownstackError ADAPTER_NOT_FOUND."""
        held = self.table.withdraw(name)
        self._changed()
        self._clear_soon()
        return held

    def take(self, adapter_id: str) -> None:
        """A lease begins with it. Empty: with none."""
        if adapter_id:
            self.table.take(adapter_id)

    def give_back(self, adapter_id: str) -> None:
        """That lease has ended."""
        if adapter_id:
            self.table.give_back(adapter_id)
            self._clear_soon()

    async def restore(self) -> None:
        """Another engine serves: it gets what is offered, or that is offered no longer."""
        async with self._lock:
            for held in list(self.table):
                try:
                    if held.withdrawn:
                        self.table.gone(held.adapter)
                    else:
                        await self._life.engine.load_adapter(held.adapter)
                except DownstackError as error:
                    _log.error("adapter_lost", adapter=held.adapter.id, why=error.message)
                    self.table.gone(held.adapter)

    def _clear_soon(self) -> None:
        if self.table.unused():
            task = asyncio.create_task(self._clear(), name="unload adapters")
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def _clear(self) -> None:
        async with self._lock:
            for adapter in self.table.unused():
                try:
                    await self._life.engine.unload_adapter(adapter)
                except DownstackError:
                    return  # the engine is lost, and the next one does not get it
                self.table.gone(adapter)
                _log.info("adapter_unloaded", adapter=adapter.id)
