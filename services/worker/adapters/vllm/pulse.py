"""Signs of life of vLLM's engine besides its steps: vLLM's own health says that all is well while it hangs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog
from vllm.v1.engine.exceptions import EngineDeadError

from services.worker.adapters.vllm.processes import processor_s

_log = structlog.get_logger()
_PERIOD_S = 0.5
# A process that uses less of a core than this does not compute; waiting threads use a little.
_LEAST_SHARE = 0.05


class Pulse:
    """Counts the answers of the engine, which come between two steps, and the periods in which it computed.

    A step may take long, a compilation minutes, and the engine answers nothing meanwhile; but it uses a processor,
    which a stopped or deadlocked one does not.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]], *, steps: Callable[[], int], pids: Sequence[int]) -> None:
        self._ask = ask
        self._steps = steps
        self._pids = pids
        self.count = 0

    async def run(self) -> None:
        """Counts until the engine has died."""
        async with asyncio.TaskGroup() as group:
            computing = group.create_task(self._count_computing())
            with suppress(EngineDeadError):
                await self._count_answers()
            computing.cancel()

    async def answers(self, *, within_s: float) -> bool:
        """Whether it answers now."""
        try:
            async with asyncio.timeout(within_s):
                await self._hear()
        except (TimeoutError, EngineDeadError):
            return False
        return True

    async def _count_answers(self) -> None:
        while True:
            steps = self._steps()
            await asyncio.sleep(_PERIOD_S)
            if self._steps() == steps:  # or its steps say enough
                await self._hear()
                self.count += 1

    async def _hear(self) -> None:
        try:
            await self._ask()
        except EngineDeadError:
            raise
        except Exception as error:  # noqa: BLE001  what the engine's process raised comes as a bare Exception
            _log.warning("engine_answered_with_an_error", error=type(error).__name__)

    async def _count_computing(self) -> None:
        used_s: float | None = None
        while True:
            steps = self._steps()
            await asyncio.sleep(_PERIOD_S)
            if self._steps() != steps:
                used_s = None
                continue
            before_s, used_s = used_s, processor_s(self._pids)
            if before_s is not None:
                self.count += used_s - before_s > _LEAST_SHARE * _PERIOD_S
