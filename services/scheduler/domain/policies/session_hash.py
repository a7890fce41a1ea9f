"""The same conversation goes to the same worker, as long as that worker is there.

Rendezvous hashing: each worker draws a number from the conversation and its own id, and the highest wins. When a worker
comes or goes, only the conversations move that it wins or won. A request without a conversation goes by the beginning
of its prompt. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from services.scheduler.domain.grammar import BestScore, Binding, Group, Policy, Weighted
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.roster import Floats
from services.scheduler.domain.worker import Worker

_MAX_WORKERS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHashWeights:
    """What can be set."""

    prefix_tokens: float = 1024
    """The beginning of a prompt that stands for its conversation where none is named."""


class Rendezvous:
    """Scores from 0 to 1 by the hash of conversation and worker."""

    def __init__(self, weights: SessionHashWeights) -> None:
        self._weights = weights
        self._seeds: dict[str, int] = {}

    def score(self, group: Group, request: Request, _now: float, /) -> Floats:
        key = xxhash.xxh3_64_intdigest(_session(group.offer, request, self._weights))
        drawn: Floats = _mixed(self._seeds_of(group.roster.workers) ^ np.uint64(key)) / 2.0**64
        return drawn

    def _seeds_of(self, workers: Sequence[Worker]) -> npt.NDArray[np.uint64]:
        if len(self._seeds) > _MAX_WORKERS:
            self._seeds.clear()
        for worker in workers:
            if worker.worker_id not in self._seeds:
                self._seeds[worker.worker_id] = xxhash.xxh3_64_intdigest(worker.worker_id.encode())
        return np.array([self._seeds[worker.worker_id] for worker in workers], np.uint64)


def _session(offer: Offer, request: Request, weights: SessionHashWeights) -> bytes:
    if request.conversation_id or not offer.block_hashes:
        return f"{request.tenant_id}\0{request.conversation_id or request.request_id}".encode()
    blocks = max(1, int(weights.prefix_tokens) // offer.block_size)
    return offer.block_hashes[:blocks][-1].to_bytes(8, "little")


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the result depends on every bit given."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def session_hash(weights: SessionHashWeights) -> Policy:
    return Policy(
        name="session-hash/1",
        binding=Binding.AT_ONCE,
        scorers=(Weighted(scorer=Rendezvous(weights)),),
        picker=BestScore(),
    )
