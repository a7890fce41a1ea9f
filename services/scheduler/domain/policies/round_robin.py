"""Each worker in its turn."""

from collections.abc import Sequence

from services.scheduler.domain.grammar import Candidate, Chance, Policy


class NextInTurn:
    """Picks the worker after the one picked last, in the order of their ids."""

    def __init__(self) -> None:
        self._last = ""

    def pick(self, candidates: Sequence[Candidate], _chance: Chance, /) -> Candidate:
        def turn(candidate: Candidate) -> tuple[bool, str]:
            return (candidate.worker.worker_id <= self._last, candidate.worker.worker_id)

        chosen = min(candidates, key=turn)
        self._last = chosen.worker.worker_id
        return chosen


def round_robin() -> Policy:
    return Policy(name="round-robin/1", picker=NextInTurn())
