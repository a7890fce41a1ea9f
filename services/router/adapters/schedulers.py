"""Several schedulers as one: each request goes to one of them, and to another where that one cannot be reached."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from services.kit.clock import Clock
from services.kit.errors import Code, DownstackError, Reason
from services.kit.identity import Identity
from services.router.adapters.scheduler_client import SchedulerClient
from services.router.domain.explanation import Billed, Placed
from services.router.domain.outcome import FinishReason, Usage
from services.router.domain.preference import preferred
from services.router.ports import Placement, PlaceOrder

_PAUSE_FIRST_S = 0.05
_PAUSE_MOST_S = 0.5
_MOST_LEASES = 65_536


class Schedulers:
    """Sends the requests for a model to the same scheduler, as every router does: who competes, waits in one queue.

    Where that one cannot be reached, they go to the next in the model's order. With a `spread` of more than 1, so many
    of them take turns.

    A placement may be asked for again, here or elsewhere: one scheduler gives the same attempt the same lease, and a
    lease that nobody heard of expires unused. So while no scheduler can be reached, or all are leaving, a request waits
    `patience_s` for one that can: a scheduler that is started anew costs its callers a moment and no error.
    """

    def __init__(self, clients: Mapping[str, SchedulerClient], *, spread: int, patience_s: float, clock: Clock) -> None:
        """The clients by address."""
        self._clients = clients
        self._spread = min(spread, len(clients))
        self._patience_s = patience_s
        self._clock = clock
        self._turn = 0
        self._granted_by: OrderedDict[str, SchedulerClient] = OrderedDict()

    async def place(self, identity: Identity, order: PlaceOrder, *, timeout_s: float) -> Placement:
        now = self._clock.monotonic()
        gives_up_at, ends_at = now + min(self._patience_s, timeout_s), now + timeout_s
        clients = self._in_order(order.model)
        pause_s, tried = _PAUSE_FIRST_S, 0
        while True:
            client = clients[tried % len(clients)]
            tried += 1
            try:
                placement = await client.place(identity, order, timeout_s=max(0.0, ends_at - self._clock.monotonic()))
            except DownstackError as error:
                if not _elsewhere(error):
                    raise
                if self._clock.monotonic() + pause_s >= gives_up_at:
                    raise _unreachable() from error
            else:
                self._remember(placement.lease_id, client)
                return placement
            if tried % len(clients) == 0:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)

    def _in_order(self, model: str) -> list[SchedulerClient]:
        """Whom to ask, one after the other."""
        ranked = preferred(self._clients, model=model)
        self._turn = (self._turn + 1) % self._spread
        ranked[: self._spread] = [*ranked[self._turn : self._spread], *ranked[: self._turn]]
        return [self._clients[address] for address in ranked]

    async def release(self, identity: Identity, *, lease_id: str, finish_reason: FinishReason, usage: Usage) -> None:
        client = self._granted_by.pop(lease_id, None)
        if client is None:
            return  # one of very many: its worker reports its end
        await client.release(identity, lease_id=lease_id, finish_reason=finish_reason, usage=usage)

    async def describe(
        self, identity: Identity, *, request_id: str, timeout_s: float
    ) -> tuple[Sequence[Placed], Sequence[Billed]]:
        """What all of them know; the ledger is one, and any of them reads it."""
        asked = [
            client.describe(identity, request_id=request_id, timeout_s=timeout_s) for client in self._clients.values()
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        known = [each for each in found if not isinstance(each, BaseException)]
        for error in found:
            if isinstance(error, BaseException) and (not known or not isinstance(error, DownstackError)):
                raise error
        placed = {each.lease_id: each for placements, _ in known for each in placements}
        return list(placed.values()), max((rows for _, rows in known), key=len)

    def _remember(self, lease_id: str, client: SchedulerClient) -> None:
        self._granted_by[lease_id] = client
        if len(self._granted_by) > _MOST_LEASES:
            self._granted_by.popitem(last=False)


def _elsewhere(error: DownstackError) -> bool:
    """Whether another scheduler, or the same one in a moment, may do what this one could not."""
    return error.reason is Reason.DRAINING or (
        error.reason is Reason.DEPENDENCY_UNAVAILABLE and error.metadata.get("code") == Code.UNAVAILABLE.value
    )


def _unreachable() -> DownstackError:
    return DownstackError(Reason.DEPENDENCY_UNAVAILABLE, "no scheduler can be reached", retry_after_s=1.0)
