"""Linear least squares that follows what changes, and stays at what was known before where the data say nothing."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

# What was known before counts as much as this share of an observation, and more where observations scatter.
_PRIOR_WEIGHT = 0.01
_PRIOR_WEIGHT_PER_VARIANCE = 4.0
# What is predicted for the weights may be a few observations old, except in the beginning: solving costs most.
_EARLY, _PERIOD = 32, 16

Vector = npt.NDArray[np.float64]


class Regression:
    """y = sum of terms, each an observed size times a coefficient that is not negative.

    Recursive least squares in information form with exponential forgetting (Haykin, "Adaptive Filter Theory"), of
    relative errors: an observation weighs 1 / max(y, predicted y)^2, so that long times do not drown short ones, and
    one that is a hundred times too long counts little. A ridge holds the coefficients at the prior. It hardly matters
    in the directions that the observations vary in; in the others it is all there is.

    Args:
        prior: The coefficients before any observation.
        small: For a term, another one and how much smaller its coefficient should be about. Without it, a term that
            the observations show little of could become anything, and be wrong by far where it is all.
        forget: What the weight of an observation becomes with each further one.
    """

    def __init__(self, prior: Sequence[float], *, small: Mapping[int, tuple[int, float]], forget: float) -> None:
        self._prior: Vector = np.asarray(prior, dtype=np.float64)
        self._small = small
        self._forget = forget
        self._weight = 0.0
        self._count = 0
        self._squares = 0.0
        self._moments: Vector = np.zeros((len(prior), len(prior)))
        self._products: Vector = np.zeros(len(prior))
        self._solution = self._prior
        self._stale = False

    def observe(self, sizes: Sequence[float], y: float) -> None:
        """Takes one observation in. Nothing that took time, and something that took none, are not observations."""
        x: Vector = np.asarray(sizes, dtype=np.float64)
        if y <= 0 or not x.any():
            return
        known = self.coefficients if self._count < _EARLY or self._count % _PERIOD == 0 else self._solution
        larger = max(y, float(x @ known))
        scaled = x / larger
        self._weight = self._weight * self._forget + 1.0
        self._squares = self._squares * self._forget + (y / larger) ** 2
        self._moments = self._moments * self._forget + np.outer(scaled, scaled)
        self._products = self._products * self._forget + scaled * (y / larger)
        self._count += 1
        self._stale = True

    @property
    def coefficients(self) -> Vector:
        """The estimate now, one for each term."""
        if self._stale:
            self._solution, self._stale = self._solve(), False
        return self._solution

    def _solve(self) -> Vector:
        """Twice: the first fit tells how much the observations scatter."""
        found = self._held(_PRIOR_WEIGHT)
        scatter = self._squares - 2 * float(found @ self._products) + float(found @ self._moments @ found)
        variance = max(0.0, scatter) / max(1.0, self._weight - len(found))
        return self._held(_PRIOR_WEIGHT + _PRIOR_WEIGHT_PER_VARIANCE * variance)

    def _held(self, prior_weight: float) -> Vector:
        """The fit with a prior that counts so many observations."""
        seen = np.diag(self._moments)
        # In the units of what each term was in the observations; one that was in none stays where it was.
        scale = seen.copy()
        for term, (other, ratio) in self._small.items():
            scale[term] = max(seen[term], seen[other] * ratio**2)
        ridge = np.where(seen > 0, scale * (prior_weight / self._weight), 1.0)
        unit = np.sqrt(seen + ridge)
        matrix = (self._moments + np.diag(ridge)) / np.outer(unit, unit)
        found: Vector = _least_non_negative(matrix, (self._products + ridge * self._prior) / unit) / unit
        return found


def _least_non_negative(matrix: Vector, right: Vector) -> Vector:
    """The x >= 0 with the least x'Mx - 2r'x: of all choices of terms that are not zero, the best one."""
    best, least = np.zeros(len(right)), 0.0
    for size in range(len(right), 0, -1):
        for chosen in combinations(range(len(right)), size):
            free = list(chosen)
            part = np.linalg.solve(matrix[np.ix_(free, free)], right[free])
            value = -float(right[free] @ part)  # what it is at the minimum over these terms
            if part.min() >= 0 and value < least:
                best, least = np.zeros(len(right)), value
                best[free] = part
        if size == len(right) and least < 0:
            break  # the minimum without bounds is within them
    return best
