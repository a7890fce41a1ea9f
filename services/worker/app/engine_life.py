"""One engine after another: started, watched, and replaced when it has died or hangs."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason, StartupError
from services.kit.ids import new_id
from services.worker.app import metrics
from services.worker.domain.mirror import Mirror
from services.worker.domain.progress import Progress
from services.worker.domain.restarts import Restarts
from services.worker.ports import Engine

_log = structlog.get_logger()
_WATCH_S = 0.25
_STOP_S = 15.0


@dataclass(frozen=True)
class LifeLimits:
    """How long an engine may take for what.

    Attributes:
        progress_s: Without a sign of life for this long, an engine hangs.
        longest_step_s: With work and without a step for this long, it hangs whatever else it does.
        start_s: The longest start.
        first_pause_s: The pause before a lost engine is started anew; doubles with each setback.
        longest_pause_s: The longest such pause.
        max_restarts: The most starts that may fail in a row.
    """

    progress_s: float = 3.0
    longest_step_s: float = 300.0
    start_s: float = 1800.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    max_restarts: int = 5


class EngineLife:
    """The engine that runs now, with the epoch and the mirror of its cache, which live as long as it does."""

    def __init__(self, make: Callable[[], Engine], *, limits: LifeLimits, clock: Clock) -> None:
        self._make = make
        self._limits = limits
        self._clock = clock
        self._restarts = Restarts(
            first_pause_s=limits.first_pause_s,
            longest_pause_s=limits.longest_pause_s,
            max_failures=limits.max_restarts,
        )
        self._serves = False
        self._enter(make())

    async def start(self) -> None:
        """Starts the first engine. Raises StartupError."""
        await self._start(self.engine)
        self.serve()

    async def stop(self) -> None:
        """Ends the engine. Harmless where it never started."""
        self._serves = False
        await self._stop(self.engine)

    @property
    def healthy(self) -> bool:
        """Whether the engine serves, and makes progress."""
        return self._serves and not self.engine.dead and self._progress.healthy

    async def until_lost(self) -> str:
        """Watches the engine; returns why it is lost, once it is. From then on it is not healthy."""
        while self.healthy:
            stats = self.engine.stats()
            self._progress.observe(
                steps=stats.steps, unfinished=stats.unfinished, pulse=stats.pulse, now=self._clock.monotonic()
            )
            metrics.RUNNING.set(stats.running)
            metrics.WAITING.set(stats.waiting)
            metrics.KV_USAGE.set(stats.kv_usage)
            await asyncio.sleep(_WATCH_S)
        self._serves = False
        why = "died" if self.engine.dead else "hangs"
        metrics.ENGINES_LOST.labels(why).inc()
        self._restarts.lost(now=self._clock.monotonic())
        return why

    async def renew(self) -> None:
        """Ends what is left of the lost engine, and starts another one, again and again until one starts.

        It serves once `serve` is called.

        Raises:
            DownstackError: ENGINE_DEAD, after `max_restarts` starts failed in a row.
        """
        await self._stop(self.engine)
        while not self._restarts.exhausted:
            await asyncio.sleep(self._restarts.pause_s)
            try:
                engine = self._make()
                await self._start(engine)
            except (StartupError, DownstackError) as error:
                self._restarts.failed()
                metrics.RESTARTS.labels("failed").inc()
                _log.error("engine_restart_failed", why=str(error))
            else:
                metrics.RESTARTS.labels("started").inc()
                self._enter(engine)
                return
        raise DownstackError(Reason.ENGINE_DEAD, "The engine is lost, and cannot be started anew.")

    def serve(self) -> None:
        """What has started may be used from now on."""
        self._restarts.started(now=self._clock.monotonic())
        self._serves = True

    async def _start(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(self._limits.start_s):
                await engine.start()
        except BaseException as error:
            await self._stop(engine)
            if isinstance(error, TimeoutError):
                raise StartupError(f"The engine did not start within {self._limits.start_s:g} s.") from None
            raise

    async def _stop(self, engine: Engine) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await engine.stop()
        except TimeoutError:
            _log.error("engine_did_not_stop")

    def _enter(self, engine: Engine) -> None:
        self.engine = engine
        self.epoch = new_id("epo")
        self.mirror = Mirror()
        self._progress = Progress(silence_s=self._limits.progress_s, longest_step_s=self._limits.longest_step_s)
