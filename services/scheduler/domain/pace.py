"""How fast prompts may be given to a worker, so that the answers it runs keep their pace.

While an engine computes a chunk of a prompt, each of its answers gets one token in the time of the whole chunk. With a
share `duty` of its time in such steps, an answer gets `duty / chunk + (1 - duty) / step` tokens a millisecond. That is
one in `tpot_ms` at

    duty = (1 / step - 1 / tpot_ms) / (1 / step - 1 / chunk)

A prompt of `prefill` ms therefore takes its worker's time for `prefill / duty` ms, and who has more than that before it
is given no more. Source of the bucket: the virtual scheduling form of the generic cell rate algorithm (ITU-T I.371).
"""

import numpy as np

from services.scheduler.domain.limits import Limits
from services.scheduler.domain.roster import Bools, Columns, Floats

# However fast answers should be, at least half of a worker's time may go into prompts.
_LEAST_DUTY = 0.5


def duty(columns: Columns, *, tpot_ms: float) -> Floats:
    """The largest share of each worker's time that may go into prompts."""
    step, chunk = np.maximum(columns.step_ms, 1e-6), np.maximum(columns.chunk_ms, 1e-6)
    spare = 1 / step - 1 / tpot_ms
    lost = np.maximum(1 / step - 1 / chunk, 1e-12)
    found: Floats = np.where(chunk <= tpot_ms, 1.0, np.clip(spare / lost, _LEAST_DUTY, 1.0))
    return found


class Pace:
    """When each worker, by its number in the index, will have had the time that its prompts may take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free_at: Floats = np.zeros(0)

    def allows(self, columns: Columns, *, now: float) -> Bools:
        """Which workers may be given a prompt."""
        ahead_s: Floats = self._times(columns) - now
        return ahead_s <= self._limits.prefill_ahead_ms / 1000

    def given(self, columns: Columns, row: int, *, prefill_ms: float, now: float) -> None:
        """Note that a worker was given a prompt."""
        free_at = max(now, float(self._times(columns)[row]))
        share = float(duty(columns, tpot_ms=self._limits.pace_tpot_ms)[row])
        self._free_at[int(columns.number[row])] = free_at + prefill_ms / share / 1000

    def _times(self, columns: Columns) -> Floats:
        numbers = columns.number.astype(np.intp)
        most = int(numbers.max()) + 1
        if most > len(self._free_at):
            self._free_at = np.concatenate((self._free_at, np.zeros(most - len(self._free_at))))
        return self._free_at[numbers]
