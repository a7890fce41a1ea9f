"""LedgerService over gRPC: a caller sees its own tenant's rows and budgets, an operator sets the budgets."""

import uuid
from collections.abc import Sequence

import grpc.aio
from downstack.scheduler.v1 import ledger_pb2 as pb
from downstack.scheduler.v1.ledger_pb2_grpc import LedgerServiceServicer

from services.kit.errors import DownstackError, Reason, Violations
from services.kit.identity import current_identity
from services.kit.pg.paging import page_limit
from services.scheduler.adapters.budget_wire import budget_of, key_of, status_message, tenant_of
from services.scheduler.adapters.ledger_wire import GROUPINGS, decided_message, filter_of, row_message, total_message
from services.scheduler.adapters.page_tokens import PageTokens
from services.scheduler.adapters.timeline import Timeline
from services.scheduler.adapters.writing import decision_message
from services.scheduler.budget_keeper import BudgetKeeper
from services.scheduler.domain.brain import Brain
from services.scheduler.domain.ledger import DecisionEntry, UsageFilter
from services.scheduler.ports import LedgerStore

_MAX_REQUEST_ROWS = 1000
_YEAR_10000 = 253_402_300_800


class LedgerServicer(LedgerServiceServicer):
    """Reads the ledger; decisions that have not reached it yet come from the scheduler's memory."""

    def __init__(
        self,
        store: LedgerStore,
        brain: Brain,
        *,
        keeper: BudgetKeeper,
        scheduler_id: str,
        tokens: PageTokens,
        timeline: Timeline,
    ) -> None:
        self._store = store
        self._brain = brain
        self._keeper = keeper
        self._scheduler_id = scheduler_id
        self._tokens = tokens
        self._timeline = timeline

    async def GetUsage(  # noqa: N802  gRPC's names
        self,
        request: pb.GetUsageRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002  gRPC's signature
    ) -> pb.GetUsageResponse:
        by = GROUPINGS.get(request.group_by)
        if by is None:
            violations = Violations()
            violations.add("group_by", "is not a known group")
            violations.check()
            raise AssertionError
        totals = await self._store.totals(_tenant(), _checked(request.filter), by=by)
        return pb.GetUsageResponse(totals=[total_message(total) for total in totals])

    async def ListUsage(  # noqa: N802
        self,
        request: pb.ListUsageRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.ListUsageResponse:
        tenant_id, chosen = _tenant(), _checked(request.filter)
        bound_to = (tenant_id, request.filter.SerializeToString(deterministic=True).hex())
        position = self._tokens.read(request.page_token, parts=2, bound_to=bound_to)
        limit = page_limit(request.page_size)
        page = await self._store.usage(tenant_id, chosen, limit=limit, after=_after(position))
        token = ""
        if page.more:
            last = page.entries[-1]
            token = self._tokens.write((repr(last.finished_at), last.lease_id), bound_to=bound_to)
        return pb.ListUsageResponse(rows=[row_message(entry) for entry in page.entries], next_page_token=token)

    async def SetBudget(  # noqa: N802
        self,
        request: pb.SetBudgetRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.SetBudgetResponse:
        status = await self._keeper.set(budget_of(request, currency=self._brain.prices.default.currency))
        if status is None:
            raise DownstackError(Reason.CONFLICTING_UPDATE, "the budget was removed at the same time")
        return pb.SetBudgetResponse(status=status_message(status))

    async def ListBudgets(  # noqa: N802
        self,
        request: pb.ListBudgetsRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.ListBudgetsResponse:
        tenant_id = _budgets_of(request.tenant_id)
        bound_to = ("budgets", tenant_id or "")
        position = self._tokens.read(request.page_token, parts=5, bound_to=bound_to)
        left = [
            status
            for status in self._brain.budgets.statuses(tenant_id)
            if position is None or status.budget.key.order > tuple(position)
        ]
        page = left[: page_limit(request.page_size)]
        token = self._tokens.write(page[-1].budget.key.order, bound_to=bound_to) if len(page) < len(left) else ""
        return pb.ListBudgetsResponse(budgets=[status_message(status) for status in page], next_page_token=token)

    async def RemoveBudget(  # noqa: N802
        self,
        request: pb.RemoveBudgetRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.RemoveBudgetResponse:
        found = Violations()
        key = key_of(request, found)
        found.check()
        return pb.RemoveBudgetResponse(removed=await self._keeper.remove(key))

    async def DescribeRequest(  # noqa: N802
        self,
        request: pb.DescribeRequestRequest,
        context: grpc.aio.ServicerContext,  # noqa: ARG002
    ) -> pb.DescribeRequestResponse:
        if not request.request_id:
            violations = Violations()
            violations.add("request_id", "is required")
            violations.check()
        tenant_id = _tenant()
        decisions = await self._decisions(tenant_id, request.request_id)
        chosen = UsageFilter(request_id=_text(request.request_id, "request_id"))
        page = await self._store.usage(tenant_id, chosen, limit=_MAX_REQUEST_ROWS, after=None)
        if not decisions and not page.entries:
            raise DownstackError(Reason.REQUEST_NOT_FOUND, "no such request is known")
        return pb.DescribeRequestResponse(
            decisions=[decided_message(entry) for entry in decisions],
            rows=[row_message(entry) for entry in reversed(page.entries)],
        )

    async def _decisions(self, tenant_id: str, request_id: str) -> list[DecisionEntry]:
        found = {entry.lease_id: entry for entry in await self._store.decisions(tenant_id, request_id)}
        for decision in self._brain.decisions_of(tenant_id=tenant_id, request_id=request_id):
            message = decision_message(decision, scheduler_id=self._scheduler_id, prices=self._brain.prices)
            entry = DecisionEntry(
                request_id=request_id,
                attempt=decision.attempt,
                lease_id=decision.lease_id,
                decided_at=self._timeline.wall(decision.decided_at),
                payload=message.SerializeToString(),
            )
            found.setdefault(decision.lease_id, entry)
        return sorted(found.values(), key=lambda entry: (entry.attempt, entry.decided_at))


def _tenant() -> str:
    tenant_id = current_identity().tenant_id
    if not tenant_id:
        raise DownstackError(Reason.ACTION_NOT_ALLOWED, "the ledger is read with a key of the tenant")
    return str(uuid.UUID(tenant_id))


def _budgets_of(tenant_id: str) -> str | None:
    """The tenant whose budgets the caller sees; None: all tenants'."""
    caller, found = current_identity(), Violations()
    wanted = tenant_of(tenant_id, found) if tenant_id else ""
    found.check()
    if "admin" in caller.scopes:
        return wanted or None
    own = _tenant()
    if wanted not in {"", own}:
        raise DownstackError(Reason.ACTION_NOT_ALLOWED, "the budgets of another tenant are the operator's to see")
    return own


def _checked(message: pb.UsageFilter) -> UsageFilter:
    violations = Violations()
    for field in ("model", "key_id", "request_id"):
        if "\0" in getattr(message, field):
            violations.add(f"filter.{field}", "must be text without NUL")
    chosen = filter_of(message)
    for field, moment in (("from", chosen.since), ("to", chosen.until)):
        if moment is not None and not 0 <= moment < _YEAR_10000:
            violations.add(f"filter.{field}", "must be a moment from 1970 to 9999")
    violations.check()
    return chosen


def _text(text: str, field: str) -> str:
    violations = Violations()
    if "\0" in text:
        violations.add(field, "must be text without NUL")
    violations.check()
    return text


def _after(position: Sequence[str] | None) -> tuple[float, str] | None:
    return None if position is None else (float(position[0]), position[1])
