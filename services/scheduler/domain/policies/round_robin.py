"""Each worker in its turn."""

from services.scheduler.domain.grammar import Chance, Policy, Slate


class NextInTurn:
    """Picks the worker after the one picked last, in the order of their ids."""

    def __init__(self) -> None:
        self._last = ""

    def pick(self, slate: Slate, _chance: Chance, /) -> int:
        def turn(row: int) -> tuple[bool, str]:
            _, worker = slate.place(row)
            return (worker.worker_id <= self._last, worker.worker_id)

        rows: list[int] = slate.passed.tolist()
        chosen = min(rows, key=turn)
        self._last = slate.place(chosen)[1].worker_id
        return chosen


def round_robin() -> Policy:
    return Policy(name="round-robin/1", picker=NextInTurn())
