"""The cost model: what a placement would take, in milliseconds and money.

    ttft(w)    = wait(w) + prefill_base(w) + (p - cached(w)) * prefill_ms_per_token(w)
    time(w)    = ttft(w) + (out - 1) * tpot(w, batch after placing)
    charge     = what the ledger will charge the caller
    cost(m, w) = device seconds * the worker's price, or the charge where the worker names no price
    score      = value * quality - cost - late

Tokens in flight are those of the scheduler's own leases, so the estimate does not wait for a report.
"""

from dataclasses import dataclass
from typing import NamedTuple

from services.scheduler.domain.lease import Occupancy
from services.scheduler.domain.request import Offer, Price, Priority
from services.scheduler.domain.worker import Rates, Worker

NANO = 1_000_000_000
_NANO_PER_HOUR_TO_UNITS_PER_MS = 1 / (3_600_000 * NANO)


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
    """What one worker would take for one request."""

    ttft_ms: float
    total_ms: float
    charge_nano: int
    cost: float


def charge(price: Price, *, uncached: int, cached: int, output: int) -> int:
    """What the tokens are charged at, in nano units."""
    return price.input_nano * uncached + price.cached_nano * cached + price.output_nano * output


def tpot_ms(rates: Rates, *, batch: int) -> float:
    """The time of one decode step with that many requests."""
    return rates.decode_base_ms + rates.decode_ms_per_request * max(0, batch - 1)


def wait_ms(worker: Worker, held: Occupancy, *, expected_output: int) -> float:
    """The time until the worker can begin with one more prompt: the prompts before it, and a place in the batch."""
    rates = worker.rates
    prompts = held.prefills * rates.prefill_base_ms + held.prefill_tokens * rates.prefill_ms_per_token
    beyond = held.requests + 1 - worker.spec.max_num_seqs
    if beyond <= 0:
        return prompts
    step = tpot_ms(rates, batch=worker.spec.max_num_seqs)
    return prompts + beyond * expected_output * step / worker.spec.max_num_seqs


def estimate(
    worker: Worker, offer: Offer, *, held: Occupancy, cached: int, output: int, price: Price, stale_s: float
) -> Estimate:
    """Predict a placement. `stale_s` is the age of the worker's report beyond its interval; it widens the wait."""
    rates, uncached = worker.rates, offer.prompt_tokens - cached
    step = tpot_ms(rates, batch=min(held.requests + 1, worker.spec.max_num_seqs))
    prefill = rates.prefill_base_ms + uncached * rates.prefill_ms_per_token
    wait = wait_ms(worker, held, expected_output=output) + 1000 * max(0.0, stale_s)
    decode = (output - 1) * step
    charged = charge(price, uncached=uncached, cached=cached, output=output)
    device_ms = prefill + decode / min(held.requests + 1, worker.spec.max_num_seqs)
    cost = device_ms * worker.spec.price_per_hour_nano * _NANO_PER_HOUR_TO_UNITS_PER_MS
    return Estimate(
        ttft_ms=wait + prefill,
        total_ms=wait + prefill + decode,
        charge_nano=charged,
        cost=cost if worker.spec.price_per_hour_nano else charged / NANO,
    )


def late(predicted: Estimate, objectives: Objectives, *, left_ms: float) -> float:
    """What the predicted times cost the caller. `left_ms` is the time to its deadline."""
    overdue = max(0.0, predicted.ttft_ms - objectives.ttft_ms) + max(0.0, predicted.total_ms - left_ms)
    waiting = predicted.ttft_ms + objectives.decode_share * (predicted.total_ms - predicted.ttft_ms)
    return (objectives.per_second * waiting + objectives.per_second_late * overdue) / 1000
