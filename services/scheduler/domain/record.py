"""What a decision keeps of the candidates that it considered."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Considered(NamedTuple):
    """One worker that was considered. `score` is None for one that a filter excluded."""

    worker_id: str
    model: str
    cached_tokens: int
    ttft_ms: float
    total_ms: float
    charge_nano: int
    score: float | None
    filtered_by: str
    running_requests: int


class Shortlist(NamedTuple):
    """Candidates in order, as columns: thousands are kept, and columns cost the garbage collector nothing."""

    worker_ids: tuple[str, ...]
    models: tuple[str, ...]
    filtered_by: tuple[str, ...]
    cached_tokens: npt.NDArray[np.float64]
    ttft_ms: npt.NDArray[np.float64]
    total_ms: npt.NDArray[np.float64]
    charges_nano: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    requests: npt.NDArray[np.float64]

    def first(self, count: int) -> list[Considered]:
        """The first candidates, in words."""
        scores = zip(self.filtered_by, self.scores[:count].tolist(), strict=False)
        columns = zip(
            self.worker_ids,
            self.models,
            self.cached_tokens[:count].astype(np.int64).tolist(),
            self.ttft_ms[:count].tolist(),
            self.total_ms[:count].tolist(),
            self.charges_nano[:count].tolist(),
            [None if name else score for name, score in scores],
            self.filtered_by,
            self.requests[:count].astype(np.int64).tolist(),
            strict=False,
        )
        return list(map(Considered._make, columns))
