"""Which of the models that a request offers its budgets allow."""

from services.kit.errors import DownstackError
from services.scheduler.domain.budget import wanted
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.grammar import Group
from services.scheduler.domain.prices import PriceList
from services.scheduler.domain.request import Request


class WithinBudget:
    """Excludes models on which the request could cost more than a hard budget has left."""

    name = "budget"

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    def admits(self, group: Group, request: Request, /) -> bool:
        return self._budgets.refusal(wanted(request, group.offer, group.price)) is None


def unaffordable(request: Request, *, budgets: Budgets, prices: PriceList) -> DownstackError | None:
    """Why the budgets allow none of the models; of several reasons, the one that passes first."""
    soonest: DownstackError | None = None
    for offer in request.offers:
        error = budgets.refusal(wanted(request, offer, prices.of(offer.model)))
        if error is None:
            return None
        if soonest is None or _wait_s(error) < _wait_s(soonest):
            soonest = error
    return soonest


def _wait_s(error: DownstackError) -> float:
    return float("inf") if error.retry_after_s is None else error.retry_after_s
