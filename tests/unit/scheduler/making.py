"""Makes what scheduler tests arrange: requests, workers, a brain with a clock to turn."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from services.scheduler.domain.brain import Brain
from services.scheduler.domain.cost import DEFAULT_OBJECTIVES
from services.scheduler.domain.instructions import Instruction, Place, Refuse
from services.scheduler.domain.lease import LeasePhase, LeaseState, Usage
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.policies.registry import policies
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Offer, Price, Priority, Request
from services.scheduler.domain.stimuli import (
    LeaseReleased,
    PlaceAbandoned,
    PlaceRequested,
    Report,
    Stimulus,
    Tick,
    WorkerGone,
    WorkerHello,
    WorkerReported,
)
from services.scheduler.domain.worker import Rates, WorkerSpec

BLOCK = 16
RATES = Rates(prefill_base_ms=5.0, prefill_ms_per_token=1.0, decode_base_ms=10.0, decode_ms_per_request=1.0)
PRICE = Price(version="1", currency="USD", input_nano=100, cached_nano=10, output_nano=400)


def spec(**changed: Any) -> WorkerSpec:
    fields: dict[str, Any] = {
        "model": "m",
        "context_tokens": 4096,
        "block_size": BLOCK,
        "kv_blocks": 1024,
        "max_num_seqs": 4,
        "rates": RATES,
        "kv_events": True,
    }
    return WorkerSpec(**{**fields, **changed})


def offer(prompt_tokens: int = 64, *, first_hash: int = 1000, **changed: Any) -> Offer:
    """An offer whose blocks have the hashes `first_hash`, `first_hash` + 1, …"""
    blocks = tuple(range(first_hash, first_hash + prompt_tokens // BLOCK))
    fields: dict[str, Any] = {"model": "m", "block_size": BLOCK, "block_hashes": blocks, "output_tokens": 16}
    return Offer(prompt_tokens=prompt_tokens, **{**fields, **changed})


class Desk:
    """A brain and a hand on its clock; every stimulus is followed by a check of all invariants."""

    def __init__(
        self,
        *,
        policy: str = "worth",
        seed: int = 1,
        known_models: Sequence[str] = (),
        name: str = "",
        **limits: Any,
    ) -> None:
        """`name` is what its leases begin with, where there are several."""
        self.now = 1_000.0
        self.limits = Limits(**{"settle_s": 0.0, **limits})
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self.brain = Brain(
            limits=self.limits,
            policy=policies(DEFAULT_OBJECTIVES, value=1.0)[policy](),
            prices=PriceList({}, PRICE),
            chance=random.Random(seed),
            new_lease_id=lambda: f"lse_{name}{next(self._ids):04}",
            known_models=known_models,
            started_at=self.now,
        )
        self.connections: dict[str, int] = {}
        self.epochs: dict[str, str] = {}

    def apply(self, stimulus: Stimulus) -> list[Instruction]:
        found = self.brain.apply(stimulus, self.now)
        self.brain.validate()
        return found

    def after(self, seconds: float) -> list[Instruction]:
        """Let time pass, and tick."""
        self.now += seconds
        return self.apply(Tick())

    # Requests

    def request(self, request_id: str = "req_1", **changed: Any) -> Request:
        fields: dict[str, Any] = {
            "attempt": 1,
            "tenant_id": "t1",
            "offers": (offer(),),
            "max_output_tokens": 64,
            "labels": {},
            "deadline_at": self.now + 60,
            "priority": Priority.STANDARD,
        }
        return Request(request_id=request_id, **{**fields, **changed})

    def ask(self, request_id: str = "req_1", **changed: Any) -> tuple[int, list[Instruction]]:
        call = next(self._numbers)
        return call, self.apply(PlaceRequested(call, self.request(request_id, **changed)))

    def place(self, request_id: str = "req_1", **changed: Any) -> Place:
        """Ask, and expect a placement at once."""
        _, found = self.ask(request_id, **changed)
        (placed,) = [each for each in found if isinstance(each, Place)]
        return placed

    def refusal(self, request_id: str = "req_1", **changed: Any) -> Refuse:
        """Ask, and expect a refusal at once."""
        _, found = self.ask(request_id, **changed)
        (refused,) = [each for each in found if isinstance(each, Refuse)]
        return refused

    def abandon(self, call: int) -> list[Instruction]:
        return self.apply(PlaceAbandoned(call))

    def release(self, placed: Place, **changed: Any) -> list[Instruction]:
        fields = {"lease_id": placed.grant.lease_id, "tenant_id": placed.grant.tenant_id}
        return self.apply(LeaseReleased(**{**fields, **changed}))

    # Workers

    def hello(
        self, worker_id: str = "w1", *, epoch: str = "e1", leases: Sequence[LeaseState] = (), **changed: Any
    ) -> list[Instruction]:
        connection = next(self._numbers)
        self.connections[worker_id], self.epochs[worker_id] = connection, epoch
        return self.apply(
            WorkerHello(
                connection=connection,
                worker_id=worker_id,
                epoch=epoch,
                endpoint=f"{worker_id}:1",
                spec=spec(**changed),
                leases=tuple(leases),
            )
        )

    def gone(self, worker_id: str = "w1") -> list[Instruction]:
        return self.apply(WorkerGone(self.connections[worker_id], worker_id))

    def say(self, report: Report, worker_id: str = "w1") -> list[Instruction]:
        return self.apply(WorkerReported(self.connections[worker_id], worker_id, report))

    def run(
        self, placed: Place, phase: LeasePhase = LeasePhase.STARTED, usage: Usage | None = None
    ) -> list[Instruction]:
        """Let the worker of a placement report its lease."""
        state = LeaseState(lease_id=placed.grant.lease_id, phase=phase, usage=usage)
        return self.say((state,), placed.grant.worker_id)
