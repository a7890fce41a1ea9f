"""The async shell around the brain: it brings in calls, connections and time, and carries out what the brain says."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import structlog

from services.kit.clock import Clock
from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.instructions import (
    Accept,
    Acknowledge,
    AskDrain,
    AskResync,
    Cancel,
    Close,
    Instruction,
    Place,
    Record,
    RecordPassed,
    RecordUsage,
    RecordWorker,
    Refuse,
    Released,
    ToWorker,
)
from services.scheduler.domain.request import Request
from services.scheduler.domain.stimuli import (
    LeaseReleased,
    PlaceAbandoned,
    PlaceRequested,
    Report,
    Stimulus,
    Tick,
    WorkerGone,
    WorkerHello,
    WorkerReported,
)
from services.scheduler.ports import Journal, Meter

_log = structlog.get_logger(__name__)
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellLimits:
    """The shell's own bounds."""

    tick_s: float = 0.1
    """Time between two looks at what is due."""
    max_orders: int = 1024
    """Messages that wait for one worker; one that does not read them loses its connection."""


class Connection:
    """One worker's stream. `orders` is what to send; `report` is what came."""

    def __init__(self, scheduler: "Scheduler", number: int, worker_id: str, *, max_orders: int) -> None:
        self.number = number
        self.worker_id = worker_id
        self._scheduler = scheduler
        self._orders: asyncio.Queue[ToWorker] = asyncio.Queue(max_orders)

    def put(self, order: ToWorker) -> bool:
        """Queue an order. False: the worker has not read the earlier ones."""
        try:
            self._orders.put_nowait(order)
        except asyncio.QueueFull:
            return False
        return True

    async def orders(self) -> AsyncIterator[ToWorker]:
        """What to send to the worker. Raises the error that closes the connection."""
        while True:
            order = await self._orders.get()
            if isinstance(order, Close):
                raise order.error
            yield order

    def overflow(self) -> None:
        """Let the connection end with its next order: the worker does not read."""
        while not self._orders.empty():
            self._orders.get_nowait()
        error = DownstackError(Reason.CLIENT_TOO_SLOW, "the worker does not read its messages")
        self._orders.put_nowait(Close(self.number, error))

    def report(self, report: Report) -> None:
        """Take in what the worker said."""
        self._scheduler.apply(WorkerReported(self.number, self.worker_id, report))

    def end(self) -> None:
        """The stream ended."""
        self._scheduler.disconnect(self)


class Scheduler:
    """Places requests and keeps workers. All state is in the brain; here are only the calls and streams that wait."""

    def __init__(self, brain: Brain, *, clock: Clock, journal: Journal, meter: Meter, limits: ShellLimits) -> None:
        self.brain = brain
        self._clock = clock
        self._journal = journal
        self._meter = meter
        self._limits = limits
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Place]] = {}
        self._connections: dict[int, Connection] = {}
        self._records: asyncio.Queue[Record] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._seen = (0, 0)
        self._draining = False

    # Calls

    async def place(self, request: Request) -> Place:
        """Wait for a placement, and return it once its decision is durable.

        Raises:
            DownstackError: What the brain refused it for, JOURNAL_FULL, or DRAINING.
        """
        if self._draining:
            raise _draining()
        self._journal.check_open()
        call = next(self._numbers)
        waiter: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._calls[call] = waiter
        try:
            self.apply(PlaceRequested(call, request))
            placed = await waiter
            # Also for a call that repeats another, whose own record may not be durable yet; both records are the same.
            await self._journal.decided(placed.decision, placed.grant)
        except BaseException as error:
            self._undo(call, waiter)
            if isinstance(error, DownstackError):
                self._meter.refused(error.reason)
            raise
        finally:
            del self._calls[call]
        self._meter.placed(placed.decision)
        return placed

    def _undo(self, call: int, waiter: "asyncio.Future[Place]") -> None:
        """The caller will not get its answer: leave the queue, or give back the lease that nobody knows of."""
        self.apply(PlaceAbandoned(call))
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None and not waiter.result().again:
            grant = waiter.result().grant
            self.apply(LeaseReleased(lease_id=grant.lease_id, tenant_id=grant.tenant_id, unused=True))

    def release(self, released: LeaseReleased) -> bool:
        """End a lease's hold on its worker. False: it had ended already."""
        return any(each.released for each in self.apply(released) if isinstance(each, Released))

    # Workers

    def connect(self, hello: WorkerHello) -> Connection:
        """Take a worker in; `hello.connection` is a number from `next_number`."""
        connection = Connection(self, hello.connection, hello.worker_id, max_orders=self._limits.max_orders)
        self._connections[connection.number] = connection
        self.apply(hello)
        return connection

    def next_number(self) -> int:
        return next(self._numbers)

    def disconnect(self, connection: Connection) -> None:
        if self._connections.pop(connection.number, None) is not None:
            self.apply(WorkerGone(connection.number, connection.worker_id))

    # The loop

    def apply(self, stimulus: Stimulus) -> list[Instruction]:
        """Give the brain a stimulus and carry out its instructions."""
        instructions = self.brain.apply(stimulus, self._clock.monotonic())
        for instruction in instructions:
            self._carry_out(instruction)
        state = (self.brain.fleet.version, len(self.brain.queue))
        if state != self._seen:
            self._seen = state
            self._changed.set()
            self._changed = asyncio.Event()
        return instructions

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Place(call):
                self._answer(call, instruction)
            case Refuse(call, error):
                waiter = self._calls.get(call)
                if waiter is not None and not waiter.done():
                    waiter.set_exception(error)
            case Accept() | Close() | AskResync() | AskDrain() | Cancel() | Acknowledge():
                self._order(instruction)
            case RecordUsage():
                self._meter.closed(instruction.ending.value)
                self._records.put_nowait(instruction)
            case RecordWorker():
                _log.info("worker", worker=instruction.worker_id, phase=instruction.phase.value)
                self._records.put_nowait(instruction)
            case RecordPassed(status):
                _log.warning("budget passed", tenant=status.budget.key.tenant_id, budget=str(status.budget.key))
                self._records.put_nowait(instruction)
            case Released():
                pass

    def _answer(self, call: int, placed: Place) -> None:
        waiter = self._calls.get(call)
        if waiter is not None and not waiter.done():
            waiter.set_result(placed)

    def _order(self, order: ToWorker) -> None:
        connection = self._connections.get(order.connection)
        if connection is not None and not connection.put(order):
            connection.overflow()

    def tick(self) -> None:
        """Let the brain see what time it is."""
        self.apply(Tick())

    async def run_ticks(self) -> None:
        """Tick for life."""
        while True:
            await asyncio.sleep(self._limits.tick_s)
            self.tick()

    async def run_records(self) -> None:
        """Write records for life, each until it is durable."""
        while True:
            record = await self._records.get()
            try:
                await self._write(record)
            finally:
                self._records.task_done()

    async def _write(self, record: Record) -> None:
        while True:
            try:
                match record:
                    case RecordUsage():
                        await self._journal.closed(record)
                    case RecordWorker():
                        await self._journal.worker_changed(record)
                    case RecordPassed():
                        await self._journal.budget_passed(record)
            except DownstackError as error:
                _log.warning("record not written", reason=error.reason.value)
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def recorded(self) -> None:
        """Return when every record so far is durable."""
        await self._records.join()

    async def changed(self) -> None:
        """Return when the fleet or the queue has changed."""
        await self._changed.wait()

    async def drain(self) -> None:
        """Refuse what waits, for a caller that asks elsewhere is served sooner; then make all records durable."""
        self._draining = True
        _refuse(self._calls.values())
        await asyncio.sleep(0)  # the refused calls give back what they were granted
        await self.recorded()


def _refuse(waiters: Iterable["asyncio.Future[Place]"]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(_draining())


def _draining() -> DownstackError:
    return DownstackError(Reason.DRAINING, "this scheduler is stopping", retry_after_s=_RETRY_S)
