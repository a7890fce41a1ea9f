"""The adapters of a worker and the engine that holds them: loaded, withdrawn, and gone with their last lease."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from services.kit.errors import DownstackError, Reason, StartupError
from services.worker.app import metrics
from services.worker.app.engine_call import on_engine
from services.worker.app.engine_life import EngineLife
from services.worker.domain.adapters import Adapter, Adapters, Held

_log = structlog.get_logger()
# An engine that has not taken them back by then is left to be watched: it may hang.
_RESTORE_S = 60.0


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
            await on_engine(self._life, lambda engine: engine.load_adapter(adapter))
            self.table.offer(adapter)
        _log.info("adapter_loaded", adapter=adapter.id)
        self._changed()
        self._count()
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
        try:
            async with asyncio.timeout(_RESTORE_S), self._lock:
                for held in list(self.table):
                    if held.withdrawn:
                        self.table.gone(held.adapter)
                    else:
                        await self._load_again(held.adapter)
        except TimeoutError:
            _log.error("adapters_not_restored", waited_s=_RESTORE_S)
        self._count()

    async def _load_again(self, adapter: Adapter) -> None:
        try:
            await on_engine(self._life, lambda engine: engine.load_adapter(adapter))
        except DownstackError as error:
            _log.error("adapter_lost", adapter=adapter.id, why=error.message)
            # An engine that is lost at once leaves it to the next one.
            if error.reason is not Reason.ENGINE_DEAD:
                self.table.gone(adapter)

    def _clear_soon(self) -> None:
        if self.table.unused():
            task = asyncio.create_task(self._clear(), name="unload adapters")
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def _clear(self) -> None:
        async with self._lock:
            for adapter in self.table.unused():
                await self._drop(adapter)
        self._count()

    async def _drop(self, adapter: Adapter) -> None:
        try:
            await on_engine(self._life, lambda engine: engine.unload_adapter(adapter))
        except DownstackError:
            return  # the engine is lost, and the next one does not get it
        self.table.gone(adapter)
        _log.info("adapter_unloaded", adapter=adapter.id)

    def _count(self) -> None:
        metrics.ADAPTERS.set(len(list(self.table)))
