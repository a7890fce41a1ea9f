"""The rosters of all models, brought up to date when they are looked at."""

from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.roster import Figures, Roster, figures_of

_NOBODY = Roster()


class Board:
    """One roster for each model. Fleet and lease book name the workers that changed; only those rows are renewed."""

    def __init__(self, fleet: Fleet, index: BlockIndex, book: LeaseBook, limits: Limits) -> None:
        self._fleet, self._index, self._book, self._limits = fleet, index, book, limits
        self._rosters: dict[str, Roster] = {}
        self._model_of: dict[str, str] = {}

    def roster(self, model: str) -> Roster:
        """The workers of a model as they are now, whatever their phase."""
        self._catch_up()
        return self._rosters.get(model, _NOBODY)

    def _catch_up(self) -> None:
        for changed in (self._fleet.changed, self._book.changed):
            while changed:
                self._renew(changed.pop())

    def _renew(self, worker_id: str) -> None:
        worker = self._fleet.get(worker_id)
        model = self._model_of.get(worker_id)
        if model is not None and (worker is None or worker.spec.model != model):
            self._rosters[model].remove(worker_id)
            if not self._rosters[model].workers:
                del self._rosters[model]
            del self._model_of[worker_id]
        if worker is not None:
            self._model_of[worker_id] = worker.spec.model
            self._rosters.setdefault(worker.spec.model, Roster()).put(worker, self._figures(worker_id))

    def _figures(self, worker_id: str) -> Figures[float]:
        worker = self._fleet.get(worker_id)
        assert worker is not None
        held, number = self._book.occupancy(worker_id), self._index.number(worker_id)
        return figures_of(worker, held, number=number, limits=self._limits)

    def validate(self) -> None:
        """Check the invariants: the rows are those that a new look would give."""
        self._catch_up()
        for model in self._fleet.models():
            roster = self.roster(model)
            serving = {worker.worker_id: worker for worker in self._fleet.serving(model)}
            assert {worker.worker_id: worker for worker in roster.workers} == serving
            for row, worker in enumerate(roster.workers):
                assert roster.rows[worker.worker_id] == row
                assert roster.row(worker.worker_id) == self._figures(worker.worker_id)
        assert set(self._rosters) == set(self._fleet.models())
        assert set(self._model_of) == {worker.worker_id for worker in self._fleet}
