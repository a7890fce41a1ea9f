"""Choosing a worker for one request: evaluate, filter, score, pick."""

from collections.abc import Iterable
from dataclasses import dataclass

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.cost import estimate
from services.scheduler.domain.filters import required
from services.scheduler.domain.fleet import Fleet
from services.scheduler.domain.grammar import Candidate, Chance, Policy
from services.scheduler.domain.index import BlockIndex
from services.scheduler.domain.leases import LeaseBook
from services.scheduler.domain.lengths import OutputLengths
from services.scheduler.domain.limits import Limits
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Offer, Request
from services.scheduler.domain.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What placement looks at."""

    fleet: Fleet
    index: BlockIndex
    book: LeaseBook
    lengths: OutputLengths


class Placement:
    """Evaluates the fleet for a request, and chooses by the policy. Changes nothing."""

    def __init__(self, view: View, *, policy: Policy, prices: PriceList, limits: Limits, chance: Chance) -> None:
        self._view = view
        self._policy = policy
        self._prices = prices
        self._limits = limits
        self._chance = chance
        self._filters = (*required(look_ahead=limits.look_ahead), *policy.filters)

    @property
    def policy(self) -> str:
        return self._policy.name

    def evaluate(self, request: Request, *, now: float) -> list[Candidate]:
        """Every worker of every offered model, with what filtered it or its score."""
        found = []
        for offer in request.offers:
            prefixes = self._view.index.longest(offer.block_hashes)
            output = self._expected_output(request, offer)
            for worker in self._view.fleet.serving(offer.model):
                cached = cached_tokens(worker, offer, prefixes.get(worker.worker_id, 0))
                candidate = self._candidate(worker, offer, cached, output, now)
                self._judge(candidate, request, now)
                found.append(candidate)
        return found

    def choose(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """The policy's choice among those that passed the filters. None: nobody did."""
        passed = [candidate for candidate in candidates if not candidate.filtered_by]
        return self._policy.picker.pick(passed, self._chance) if passed else None

    def room_for(self, models: Iterable[str], excluded: frozenset[str]) -> bool:
        """Whether some worker of these models might take one more request: a cheap look before evaluating."""
        return any(
            worker.ready
            and worker.worker_id not in excluded
            and self._view.book.occupancy(worker.worker_id).requests
            < max(1, worker.spec.max_num_seqs + self._limits.look_ahead)
            for model in models
            for worker in self._view.fleet.serving(model)
        )

    def _expected_output(self, request: Request, offer: Offer) -> int:
        if offer.output_tokens is not None:
            return min(offer.output_tokens, request.max_output_tokens)
        return self._view.lengths.expect(request.tenant_id, offer.model, at_most=request.max_output_tokens)

    def _candidate(self, worker: Worker, offer: Offer, cached: int, output: int, now: float) -> Candidate:
        held = self._view.book.occupancy(worker.worker_id)
        predicted = estimate(
            worker,
            offer,
            held=held,
            cached=cached,
            output=output,
            price=self._prices.of(offer.model),
            stale_s=now - worker.reported_at - 2 * self._limits.report_interval_s,
        )
        return Candidate(worker, offer, held, cached, output, predicted)

    def _judge(self, candidate: Candidate, request: Request, now: float) -> None:
        for each in self._filters:
            if not each.admits(candidate, request):
                candidate.filtered_by = each.name
                return
        candidate.score = sum(part.weight * part.scorer.score(candidate, request, now) for part in self._policy.scorers)


def cached_tokens(worker: Worker, offer: Offer, blocks: int) -> int:
    """The tokens that a resident prefix saves. An engine always computes the prompt's last token itself."""
    if not blocks or offer.block_size != worker.spec.block_size:
        return 0
    return min(blocks, (offer.prompt_tokens - 1) // offer.block_size) * offer.block_size


def impossible(candidates: Iterable[Candidate]) -> DownstackError | None:
    """The reason why waiting would not help: workers could take a request, but never this one."""
    refusals = {each.filtered_by for each in candidates if each.filtered_by not in {"ready", "not-tried"}}
    if not refusals or not refusals <= {"context", "bounds"}:
        return None
    if refusals == {"context"}:
        return DownstackError(Reason.PROMPT_TOO_LONG, "the prompt is longer than the context of every worker")
    return DownstackError(Reason.PARAM_CONFLICT, "no candidate keeps to max_cost and min_quality")
