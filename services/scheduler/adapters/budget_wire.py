"""Between budgets and protobuf messages."""

import datetime as dt
import uuid

from downstack.scheduler.v1 import ledger_pb2 as pb
from downstack.types.v1.usage_pb2 import Cost
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import Violations
from services.scheduler.domain.budget import Budget, BudgetKey, BudgetStatus, Period

_PERIODS = {Period.DAY: pb.BUDGET_PERIOD_DAY, Period.MONTH: pb.BUDGET_PERIOD_MONTH}
_PERIOD_OF: dict[int, Period] = {number: period for period, number in _PERIODS.items()}
_MAX_TEXT_BYTES = 256


def key_of(request: pb.SetBudgetRequest | pb.RemoveBudgetRequest, found: Violations) -> BudgetKey:
    """The budget that a request names. What is wrong with it is added to `found`; then the key is of no use."""
    for field, text in (("key_id", request.key_id), ("model", request.model)):
        if "\0" in text or len(text.encode()) > _MAX_TEXT_BYTES:
            found.add(field, f"must be text of at most {_MAX_TEXT_BYTES} bytes without NUL")
    if request.period not in _PERIOD_OF:
        found.add("period", "must be day or month")
    period = _PERIOD_OF.get(request.period, Period.DAY)
    return BudgetKey(tenant_of(request.tenant_id, found), request.key_id, request.model, period, request.soft)


def budget_of(request: pb.SetBudgetRequest, *, currency: str) -> Budget:
    """The budget that is to be set. Raises PARAM_OUT_OF_RANGE with all that is wrong; `currency` is that of prices."""
    found = Violations()
    key = key_of(request, found)
    if not request.HasField("limit"):
        found.add("limit", "is required")
    if request.limit.nano_units < 0:
        found.add("limit.nano_units", "must be at least 0")
    if request.limit.currency not in {"", currency}:
        found.add("limit.currency", f"must be {currency}, the currency of the price list")
    found.check()
    return Budget(key, request.limit.nano_units, currency)


def tenant_of(text: str, found: Violations) -> str:
    """The tenant's id in its one form."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        found.add("tenant_id", "must be a tenant's UUID")
        return ""


def status_message(status: BudgetStatus) -> pb.BudgetStatus:
    budget, key = status.budget, status.budget.key
    return pb.BudgetStatus(
        budget=pb.Budget(
            tenant_id=key.tenant_id,
            key_id=key.key_id,
            model=key.model,
            period=_PERIODS[key.period],
            limit=Cost(nano_units=budget.limit_nano, currency=budget.currency),
            soft=key.soft,
        ),
        spent=Cost(nano_units=_bounded(status.spent_nano), currency=budget.currency),
        reserved=Cost(nano_units=_bounded(status.reserved_nano), currency=budget.currency),
        period_start=_midnight(status.first),
        period_end=_midnight(status.following),
    )


def _midnight(day: dt.date) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(dt.datetime.combine(day, dt.time(), dt.UTC))
    return stamp


def _bounded(nano: int) -> int:
    """A sum may pass what a message can say."""
    return min(nano, 2**63 - 1)
