"""The fleet: every worker, by id and by model."""

from collections.abc import Iterable, Iterator

from services.scheduler.domain.worker import Load, Worker


class Fleet:
    """All workers that are connected or were lost not long ago.

    `version` grows whenever something changed that a watcher may want to see. `changed` names the workers that came,
    went or changed; who renews what it keeps of them empties it.
    """

    def __init__(self, *, known_models: Iterable[str] = ()) -> None:
        self.version = 0
        self.changed: set[str] = set()
        self._workers: dict[str, Worker] = {}
        self._by_model: dict[str, dict[str, Worker]] = {}
        self._known_models = set(known_models)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: str) -> Worker | None:
        return self._workers.get(worker_id)

    def speaking(self, worker_id: str, *, connection: int) -> Worker | None:
        """The worker, if that connection is the one that speaks for it."""
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.connection == connection else None

    def put(self, worker: Worker) -> None:
        self.remove(worker.worker_id)
        self._workers[worker.worker_id] = worker
        self._by_model.setdefault(worker.spec.model, {})[worker.worker_id] = worker
        self._known_models.add(worker.spec.model)
        self.mark(worker.worker_id)

    def remove(self, worker_id: str) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        peers = self._by_model[worker.spec.model]
        del peers[worker_id]
        if not peers:
            del self._by_model[worker.spec.model]
        self.mark(worker_id)

    def touch(self) -> None:
        self.version += 1

    def mark(self, worker_id: str) -> None:
        """Note that a worker changed."""
        self.changed.add(worker_id)
        self.touch()

    def report(self, worker: Worker, load: Load, *, now: float) -> None:
        """Take a load report; numbers that cannot be true leave the earlier ones in place."""
        worker.reported_at = now
        if load.rates is not None and load.rates.plausible():
            worker.rates = load.rates
        if load.plausible():
            worker.load = load
        self.mark(worker.worker_id)

    def serving(self, model: str) -> Iterable[Worker]:
        """The workers of a model, whatever their phase."""
        return self._by_model.get(model, {}).values()

    def has_ready(self, models: Iterable[str], *, excluded: frozenset[str] = frozenset()) -> bool:
        """Whether some worker of these models takes leases, those excluded aside."""
        return any(
            worker.ready and worker.worker_id not in excluded for model in models for worker in self.serving(model)
        )

    def knows(self, model: str) -> bool:
        """Whether the model was named by the settings, or some worker served it."""
        return model in self._known_models

    def models(self) -> list[str]:
        """The models that workers serve, sorted by name."""
        return sorted(self._by_model)

    def validate(self) -> None:
        """Check the invariants: each worker is filed once, under its own model."""
        filed = [worker for peers in self._by_model.values() for worker in peers.values()]
        assert sorted(worker.worker_id for worker in filed) == sorted(self._workers)
        for model, peers in self._by_model.items():
            assert peers
            assert all(worker.spec.model == model for worker in peers.values())
