"""The leases of a worker: which ticket may start one, which ones run, and which ends nobody has acknowledged."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from services.kit.errors import DownstackError, Reason
from services.worker.domain.adapters import not_found


class Phase(StrEnum):
    """Where a lease stands."""

    STARTED = "started"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a lease consumed so far. None: not known."""

    input_total: int | None = None
    input_cached: int | None = None
    output_total: int = 0
    output_delivered: int | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What the worker's decisions need of a ticket."""

    lease_id: str
    worker_id: str
    worker_epoch: str
    model: str
    adapter: str
    prompt_tokens: int
    max_output_tokens: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that runs here, or whose end is still to be acknowledged."""

    lease_id: str
    phase: Phase = Phase.STARTED
    counts: Counts = Counts()


class LeaseBook:
    """Every lease of one worker. A ticket is good for one epoch; leases and their ends outlive it."""

    def __init__(self, *, worker_id: str, epoch: str, model: str, max_running: int, max_remembered: int) -> None:
        self._worker_id = worker_id
        self._epoch = epoch
        self._model = model
        self._max_running = max_running
        self._max_remembered = max_remembered
        self._running: dict[str, Lease] = {}
        self._unacknowledged: dict[str, Lease] = {}
        # Lease ids that were used, until their tickets expire anyway; about in the order of expiry.
        self._used: dict[str, float] = {}

    def renew(self, epoch: str) -> None:
        """Another engine serves from now on: tickets of the epoch before start nothing any more."""
        self._epoch = epoch

    @property
    def running(self) -> Mapping[str, Lease]:
        """The leases that have not ended, by id."""
        return self._running

    @property
    def unacknowledged(self) -> Mapping[str, Lease]:
        """The leases that have ended and that no scheduler has acknowledged."""
        return self._unacknowledged

    def admit(self, grant: Grant, *, now: float, prompt_tokens: int, adapters: Collection[str] = ()) -> Lease:
        """Starts the lease of a ticket; `adapters` are the ids of those that it may name.

        Raises:
            DownstackError: TICKET_INVALID (of another worker, model or prompt), STALE_EPOCH (of an earlier engine),
                TICKET_EXPIRED, TICKET_USED, ADAPTER_NOT_FOUND, OVERLOADED (too many leases).
        """
        self._forget_expired(now)
        self._check_grant(grant, now=now, prompt_tokens=prompt_tokens)
        if grant.adapter and grant.adapter not in adapters:
            raise not_found(grant.adapter)
        if len(self._running) >= self._max_running or len(self._used) >= self._max_remembered:
            raise DownstackError(Reason.OVERLOADED, "This worker runs as many leases as it may.", retry_after_s=1.0)
        self._used[grant.lease_id] = grant.expires_at
        lease = Lease(grant.lease_id)
        self._running[grant.lease_id] = lease
        return lease

    def advance(self, lease_id: str, *, phase: Phase, counts: Counts) -> Lease:
        """Moves a running lease on; FINISHED ends it."""
        lease = replace(self._running[lease_id], phase=phase, counts=counts)
        if phase is Phase.FINISHED:
            del self._running[lease_id]
            self._remember_end(lease)
        else:
            self._running[lease_id] = lease
        return lease

    def acknowledge(self, lease_ids: Iterable[str]) -> None:
        """A scheduler has taken note of these ends."""
        for lease_id in lease_ids:
            self._unacknowledged.pop(lease_id, None)

    def _remember_end(self, lease: Lease) -> None:
        # The oldest end gives way: its usage record is in the outbox, only the scheduler's hint is lost.
        while len(self._unacknowledged) >= self._max_remembered:
            del self._unacknowledged[next(iter(self._unacknowledged))]
        self._unacknowledged[lease.lease_id] = lease

    def _forget_expired(self, now: float) -> None:
        while self._used:
            lease_id, expires_at = next(iter(self._used.items()))
            if expires_at >= now or lease_id in self._running:
                return
            del self._used[lease_id]

    def _check_grant(self, grant: Grant, *, now: float, prompt_tokens: int) -> None:
        if grant.worker_id != self._worker_id:
            raise DownstackError(Reason.TICKET_INVALID, "The ticket is for another worker.")
        if grant.worker_epoch != self._epoch:
            raise DownstackError(Reason.STALE_EPOCH, "The ticket is for an earlier engine of this worker.")
        if grant.model != self._model:
            raise DownstackError(Reason.TICKET_INVALID, "The ticket is for another model.")
        if grant.expires_at < now:
            raise DownstackError(Reason.TICKET_EXPIRED, "The ticket has expired.")
        if grant.lease_id in self._used or grant.lease_id in self._running:
            raise DownstackError(Reason.TICKET_USED, "The ticket was used already.")
        if grant.prompt_tokens != prompt_tokens:
            message = f"The ticket is for a prompt of {grant.prompt_tokens} tokens; this one has {prompt_tokens}."
            raise DownstackError(Reason.TICKET_INVALID, message)
