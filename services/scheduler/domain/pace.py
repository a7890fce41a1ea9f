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
from services.scheduler.domain.roster import Bools, Figures, Floats, Rows

# However fast answers should be, at least half of a worker's time may go into prompts.
_LEAST_DUTY = 0.5


def duty(figures: Figures[float], *, tpot_ms: float) -> float:
    """The largest share of a worker's time that may go into prompts."""
    step, chunk = max(figures.step_ms, 1e-6), max(figures.chunk_ms, 1e-6)
    if chunk <= tpot_ms:
        return 1.0
    spare = 1 / step - 1 / tpot_ms
    lost = max(1 / step - 1 / chunk, 1e-12)
    return min(1.0, max(_LEAST_DUTY, spare / lost))


class Pace:
    """When each worker, by its number in the index, will have had the time that its prompts may take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free_at: Floats = np.zeros(0)

    def allows(self, numbers: Rows, *, now: float) -> Bools:
        """Which workers may be given a prompt."""
        self._reach(int(numbers.max()))
        ahead_s: Floats = self._free_at[numbers] - now
        return ahead_s <= self._limits.prefill_ahead_ms / 1000

    def given(self, figures: Figures[float], *, prefill_ms: float, now: float) -> None:
        """Note that a worker was given a prompt."""
        number = int(figures.number)
        self._reach(number)
        share = duty(figures, tpot_ms=self._limits.pace_tpot_ms)
        self._free_at[number] = max(now, float(self._free_at[number])) + prefill_ms / share / 1000

    def _reach(self, number: int) -> None:
        more = number + 1 - len(self._free_at)
        if more > 0:
            self._free_at = np.concatenate((self._free_at, np.zeros(more)))
