"""The workers of one model as columns of numbers, so that one pass of arithmetic considers all of them."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from services.scheduler.domain.lease import Occupancy
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.worker import Rates, Worker

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

NANO = 1_000_000_000
_NANO_PER_HOUR_TO_UNITS_PER_MS = 1 / (3_600_000 * NANO)
_FIRST_ROWS = 8

T = TypeVar("T")


class Figures(NamedTuple, Generic[T]):
    """What placement computes with: of one worker as numbers, of a roster as columns."""

    number: T
    """The worker's number in the index."""
    ready: T
    """1 if it takes leases, 0 if not."""
    room: T
    """1 if it should be given more: neither batch nor cache is full, nor is there much before the next prompt."""
    reported_at: T
    requests: T
    """Requests that it holds."""
    max_num_seqs: T
    block_size: T
    prompt_room: T
    """Tokens of the longest prompt that it can take, and one."""
    kv_tokens: T
    """Tokens that its KV cache holds when full."""
    kv_room: T
    """Tokens for which its KV cache has room beyond those of the leases."""
    kv_usage: T
    """The used share of its KV cache as it reported it."""
    waiting: T
    """Requests that wait in its engine as it reported them."""
    prefills: T
    """Leases whose prompts are still to be computed."""
    prefill_tokens: T
    """Tokens of these prompts, without the cached ones."""
    backlog_ms: T
    """Time for the prompts before the next one."""
    queue_ms_per_token: T
    """Wait for a place in the batch, for each token of expected output."""
    prefill_base_ms: T
    prefill_ms_per_token: T
    prefill_ms_per_pair: T
    chunk_ms: T
    """Time of a step with as much of a prompt as fits into one."""
    step_ms: T
    """Time of one decode step with one more request, without that request's own context."""
    decode_ms_per_context_token: T
    batch: T
    """Requests that share that step."""
    price_per_ms: T
    """Price of its device, in currency units; 0 where it names none."""


Columns = Figures[Floats]


def tpot_ms(rates: Rates, *, batch: int, context_tokens: float = 0) -> float:
    """The time of one decode step with that many requests, which hold so many tokens together."""
    further = rates.decode_ms_per_request * max(0, batch - 1)
    return rates.decode_base_ms + further + rates.decode_ms_per_context_token * context_tokens


def figures_of(worker: Worker, held: Occupancy, *, number: int, limits: Limits) -> Figures[float]:
    """A worker's figures with what its leases take of it."""
    spec, rates = worker.spec, worker.rates
    batch = min(held.requests + 1, spec.max_num_seqs)
    beyond = max(0, held.requests + 1 - spec.max_num_seqs)
    # Those that wait for a place in the batch hold no context in it.
    context_tokens = held.context_tokens * min(1.0, spec.max_num_seqs / max(1, held.requests))
    step_ms = tpot_ms(rates, batch=batch, context_tokens=context_tokens)
    backlog_ms, kv_tokens, ready = _backlog_ms(rates, held), spec.kv_tokens, worker.ready
    short = backlog_ms <= limits.prefill_ahead_ms and held.kv_tokens < kv_tokens
    place = held.requests < max(1, spec.max_num_seqs + limits.look_ahead)
    return Figures(
        number=number,
        ready=ready,
        room=ready and (not held.requests or (short and place)),
        reported_at=worker.reported_at,
        requests=held.requests,
        max_num_seqs=spec.max_num_seqs,
        block_size=spec.block_size,
        prompt_room=min(spec.context_tokens, kv_tokens),
        kv_tokens=kv_tokens,
        kv_room=kv_tokens - held.kv_tokens,
        kv_usage=worker.load.kv_usage,
        waiting=worker.load.waiting_requests,
        prefills=held.prefills,
        prefill_tokens=held.prefill_tokens,
        backlog_ms=backlog_ms,
        queue_ms_per_token=beyond * step_ms / spec.max_num_seqs,
        prefill_base_ms=rates.prefill_base_ms,
        prefill_ms_per_token=rates.prefill_ms_per_token,
        prefill_ms_per_pair=rates.prefill_ms_per_pair,
        chunk_ms=rates.prefill_base_ms + spec.max_num_batched_tokens * rates.prefill_ms_per_token,
        step_ms=step_ms,
        decode_ms_per_context_token=rates.decode_ms_per_context_token,
        batch=batch,
        price_per_ms=spec.price_per_hour_nano * _NANO_PER_HOUR_TO_UNITS_PER_MS,
    )


def _backlog_ms(rates: Rates, held: Occupancy) -> float:
    tokens_ms = held.prefill_tokens * rates.prefill_ms_per_token + held.prefill_pairs * rates.prefill_ms_per_pair
    return held.prefills * rates.prefill_base_ms + tokens_ms


class Roster:
    """Rows of workers. Row i of each column is `workers[i]`; a row keeps its place until a worker leaves."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.rows: dict[str, int] = {}
        self._cells = np.zeros((len(Figures._fields), _FIRST_ROWS))
        self._columns: Columns | None = None
        self._numbers: Rows | None = None

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def columns(self) -> Columns:
        """The columns; they change with the roster."""
        if self._columns is None:
            self._columns = Figures(*self._cells[:, : len(self.workers)])
        return self._columns

    @property
    def numbers(self) -> Rows:
        """The column `number`, to index with."""
        if self._numbers is None:
            self._numbers = self.columns.number.astype(np.intp)
        return self._numbers

    def put(self, worker: Worker, figures: Figures[float]) -> None:
        """Enter a worker, or what has changed of it."""
        row = self.rows.get(worker.worker_id)
        if row is None:
            row = self.rows[worker.worker_id] = len(self.workers)
            self.workers.append(worker)
            self._columns = self._numbers = None
            if row == self._cells.shape[1]:
                self._cells = np.concatenate((self._cells, np.zeros_like(self._cells)), axis=1)
        self.workers[row] = worker
        if self._cells[0, row] != figures.number:
            self._numbers = None
        self._cells[:, row] = figures

    def remove(self, worker_id: str) -> None:
        """Take a worker out; the last one moves into its row."""
        row, last = self.rows.pop(worker_id), self.workers.pop()
        self._columns = self._numbers = None
        if row == len(self.workers):
            return
        self.workers[row] = last
        self.rows[last.worker_id] = row
        self._cells[:, row] = self._cells[:, len(self.workers)]

    def row(self, worker_id: str) -> Figures[float]:
        """A worker's figures."""
        return Figures(*self._cells[:, self.rows[worker_id]].tolist())


def without(rows: Mapping[str, int], workers: Sequence[str] | frozenset[str], *, count: int) -> Bools:
    """True for each row but those of the named workers."""
    kept = np.ones(count, np.bool_)
    for worker_id in workers:
        row = rows.get(worker_id)
        if row is not None:
            kept[row] = False
    return kept
