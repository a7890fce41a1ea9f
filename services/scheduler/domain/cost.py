"""The cost model: what a placement would take, in milliseconds and money.

    pairs(w)   = (p - cached(w)) * (p + cached(w)) / 2, of a new token and a token before it
    prefill(w) = prefill_base(w) + (p - cached(w)) * prefill_ms_per_token(w) + pairs(w) * prefill_ms_per_pair(w)
    wait(w)    = prompts before this one + the larger of the waits for a place in the batch and for room in the cache
    ttft(w)    = wait(w) + prefill(w)
    time(w)    = ttft(w) + (out - 1) * tpot(w, batch after placing)
    charge     = what the ledger will charge the caller
    cost(m, w) = device seconds * the worker's price, or the charge where the worker names no price
    score      = value * quality - cost - late

All workers of a model are computed at once, as columns. Tokens in flight are those of the scheduler's own leases, so
the estimate does not wait for a report.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from services.scheduler.domain.request import Offer, Price, Priority
from services.scheduler.domain.roster import NANO, Columns, Floats

Counts = npt.NDArray[np.int64]
_Count = TypeVar("_Count", int, Counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What lateness is worth in one priority class, in currency units."""

    ttft_ms: float
    """Time to the first token from which on waiting costs more."""
    per_second: float
    """Cost of one second until the first token."""
    per_second_late: float
    """Further cost of one second beyond `ttft_ms`, or beyond the deadline."""
    decode_share: float = 0.1
    """Cost of one second after the first token, as a share of `per_second`."""


DEFAULT_OBJECTIVES = {
    Priority.INTERACTIVE: Objectives(ttft_ms=1_000, per_second=0.02, per_second_late=0.2),
    Priority.STANDARD: Objectives(ttft_ms=5_000, per_second=0.005, per_second_late=0.05),
    Priority.BATCH: Objectives(ttft_ms=60_000, per_second=0.0005, per_second_late=0.005),
}


class Estimate(NamedTuple):
    """What a placement would take on each worker."""

    ttft_ms: Floats
    total_ms: Floats
    cost: Floats
    """What the placement costs the operator, in currency units."""
    prefill_ms: Floats
    """The time to compute the uncached rest of the prompt."""


def charge(price: Price, *, uncached: _Count, cached: _Count, output: int) -> _Count:
    """What the tokens are charged at, in nano units: of one placement, or of each worker."""
    return price.input_nano * uncached + price.cached_nano * cached + price.output_nano * output


def charges_nano(price: Price, *, uncached: Floats, cached: Floats, output: int) -> Floats:
    """What `charge` is for each worker; beyond 2^53 nano units rounded."""
    return float(price.input_nano) * uncached + float(price.cached_nano) * cached + float(price.output_nano) * output


def cached_tokens(columns: Columns, offer: Offer, blocks: Floats) -> Floats:
    """The tokens that resident prefixes save. An engine always computes the prompt's last token itself."""
    if not offer.block_size:
        return np.zeros_like(blocks)
    most = (offer.prompt_tokens - 1) // offer.block_size
    saved: Floats = np.minimum(blocks, most) * (offer.block_size * (columns.block_size == offer.block_size))
    return saved


def prefill_ms(columns: Columns, *, prompt: Floats | int, cached: Floats) -> Floats:
    """The time to compute the uncached rest of a prompt on each worker."""
    uncached = prompt - cached
    pairs = uncached * (prompt + cached) / 2
    return columns.prefill_base_ms + uncached * columns.prefill_ms_per_token + pairs * columns.prefill_ms_per_pair


def _turn_ms(columns: Columns, uncached: Floats, *, output: int) -> Floats:
    """The wait for a place in the batch and for room in the cache, which come free as answers end.

    In the time of one answer everything comes free once: so many places, so many tokens.
    """
    used = np.maximum(1.0, columns.kv_tokens - columns.kv_room)
    missing = np.maximum(0.0, uncached + output - columns.kv_room)
    turn: Floats = output * np.maximum(columns.queue_ms_per_token, columns.step_ms * missing / used)
    return turn


def estimate(
    columns: Columns, offer: Offer, *, cached: Floats, output: int, price: Price, reported_since: float
) -> Estimate:
    """Predict a placement on each worker. Reports from before `reported_since` (s) widen the wait by their age."""
    uncached = offer.prompt_tokens - cached
    prefill = prefill_ms(columns, prompt=offer.prompt_tokens, cached=cached)
    stale_ms = 1000 * np.maximum(0.0, reported_since - columns.reported_at)
    ttft = columns.backlog_ms + _turn_ms(columns, uncached, output=output) + stale_ms + prefill
    step = columns.step_ms + (offer.prompt_tokens + output / 2) * columns.decode_ms_per_context_token
    decode = (output - 1) * step
    device_cost = (prefill + decode / columns.batch) * columns.price_per_ms
    priced = columns.price_per_ms > 0
    if np.count_nonzero(priced) < len(priced):
        charged = charges_nano(price, uncached=uncached, cached=cached, output=output) / NANO
        device_cost = np.where(priced, device_cost, charged)
    return Estimate(ttft, ttft + decode, device_cost, prefill)


def late(predicted: Estimate, objectives: Objectives, *, left_ms: float) -> Floats:
    """What the predicted times cost the caller. `left_ms` is the time to its deadline."""
    ttft, total = predicted.ttft_ms, predicted.total_ms
    overdue = np.maximum(0.0, ttft - objectives.ttft_ms) + np.maximum(0.0, total - left_ms)
    waiting = ttft + objectives.decode_share * (total - ttft)
    cost: Floats = (objectives.per_second * waiting + objectives.per_second_late * overdue) / 1000
    return cost


def marginal(predicted: Estimate, objectives: Objectives, *, left_ms: float) -> Floats:
    """What a further millisecond until the first token would cost the caller."""
    late_by_objective = predicted.ttft_ms >= objectives.ttft_ms
    late_by_deadline = predicted.total_ms >= left_ms
    overdue = late_by_objective.astype(np.float64) + late_by_deadline
    cost: Floats = (objectives.per_second + objectives.per_second_late * overdue) / 1000
    return cost
