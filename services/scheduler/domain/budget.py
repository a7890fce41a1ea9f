"""A budget, and what a lease takes of it: exact amounts of money, in whole nano units of a currency."""

import datetime as dt
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from services.kit.errors import DownstackError, Reason
from services.scheduler.domain.cost import charge
from services.scheduler.domain.lease import MAX_ANSWERS, Grant, Usage
from services.scheduler.domain.request import Offer, Price, Request

# When what is left is reserved by leases that are open: soon one of them ends.
_RETRY_S = 1.0


class Period(Enum):
    """The time after which a budget starts anew. Days and months are those of UTC."""

    DAY = "day"
    MONTH = "month"

    def first(self, day: dt.date) -> dt.date:
        """The first day of the period that a day lies in."""
        return day if self is Period.DAY else day.replace(day=1)

    def following(self, day: dt.date) -> dt.date:
        """The first day of the next period."""
        if self is Period.DAY:
            return day + dt.timedelta(days=1)
        return (day.replace(day=28) + dt.timedelta(days=4)).replace(day=1)


class BudgetKey(NamedTuple):
    """What tells budgets apart. A soft and a hard one of the same scope stand side by side."""

    tenant_id: str
    key_id: str
    """Empty: all keys of the tenant."""
    model: str
    """Empty: all models."""
    period: Period
    soft: bool

    @property
    def order(self) -> tuple[str, str, str, str, str]:
        """Where it stands in a list."""
        return (self.tenant_id, self.key_id, self.model, self.period.value, str(int(self.soft)))

    def __str__(self) -> str:
        whose = f"key {self.key_id}" if self.key_id else "tenant"
        what = f" on {self.model}" if self.model else ""
        return f"{whose}{what} per {self.period.value}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in each period. Soft: beyond it is warned of. Hard: nothing is granted beyond it."""

    key: BudgetKey
    limit_nano: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """A budget in the period from `first` up to `following`: what is spent, and what the open leases may still take."""

    budget: Budget
    first: dt.date
    following: dt.date
    spent_nano: int
    reserved_nano: int

    @property
    def left_nano(self) -> int:
        """What another lease may take; negative where a soft budget is passed."""
        return self.budget.limit_nano - self.spent_nano - self.reserved_nano


class Amount(NamedTuple):
    """What a lease takes, or may take, and whose budgets it counts against."""

    tenant_id: str
    key_id: str
    model: str
    currency: str
    nano: int


def wanted(request: Request, offer: Offer, price: Price) -> Amount:
    """The most that a placement of the request could cost with this offer."""
    nano = _most(price, prompt=offer.prompt_tokens, output=request.max_output_tokens, answers=request.answers)
    return Amount(request.tenant_id, request.key_id, offer.model, price.currency, nano)


def reserved(grant: Grant) -> Amount:
    """The most that a lease can cost: nothing of its prompt is cached, and all its answers are as long as allowed."""
    nano = _most(grant.price, prompt=grant.prompt_tokens, output=grant.max_output_tokens, answers=grant.answers)
    return Amount(grant.tenant_id, grant.key_id, grant.model, grant.price.currency, nano)


def used(grant: Grant, usage: Usage | None) -> Amount:
    """What a lease cost, by the rules of the ledger: what is not known is not charged."""
    read, written = (usage.input_total or 0, usage.output_total or 0) if usage else (0, 0)
    cached = min((usage.input_cached or 0) if usage else 0, read)
    nano = charge(grant.price, uncached=read - cached, cached=cached, output=written)
    return Amount(grant.tenant_id, grant.key_id, grant.model, grant.price.currency, nano)


def _most(price: Price, *, prompt: int, output: int, answers: int) -> int:
    return max(price.input_nano, price.cached_nano) * prompt + price.output_nano * output * min(answers, MAX_ANSWERS)


def in_units(nano: int, currency: str) -> str:
    """An amount for a person, exact."""
    units, rest = divmod(abs(nano), 10**9)
    digits = f"{units}.{rest:09d}".rstrip("0").rstrip(".")
    return f"{'-' if nano < 0 else ''}{digits} {currency}"


def refusal_of(status: BudgetStatus, amount: Amount, *, left_s: float) -> DownstackError:
    """Why a lease of that amount is not granted. `left_s` is the time until the period ends."""
    budget, key = status.budget, status.budget.key
    metadata = {
        "subject": f"key:{key.key_id}" if key.key_id else f"tenant:{key.tenant_id}",
        "budget": str(key),
        "currency": budget.currency,
        "limit_nano": str(budget.limit_nano),
        "spent_nano": str(status.spent_nano),
        "reserved_nano": str(status.reserved_nano),
        "request_nano": str(amount.nano),
        "period_ends": f"{status.following.isoformat()}T00:00:00Z",
    }
    retry_s: float | None = max(_RETRY_S, left_s)
    if budget.currency != amount.currency:
        message, retry_s = f"the budget of the {key} is in {budget.currency}, the price in {amount.currency}", None
    else:
        left, whole = in_units(status.left_nano, budget.currency), in_units(budget.limit_nano, budget.currency)
        most = in_units(amount.nano, budget.currency)
        message = f"of the budget of the {key}, {left} of {whole} is left, and the request may cost {most}"
        if amount.nano <= status.left_nano + status.reserved_nano:
            retry_s = _RETRY_S
    return DownstackError(Reason.QUOTA_EXCEEDED, message, metadata=metadata, retry_after_s=retry_s)
