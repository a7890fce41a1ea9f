"""What tenants have spent of their budgets, and whether another lease fits into what is left.

A lease counts in one of three ways, one after the other and each once:

    reserved   from its grant on, with the most that it can cost
    settled    from its end on, with what it did cost, until the ledger is known to have its row
    recorded   in the sum of the ledger's rows, which is read from time to time

A hard budget refuses what could take spent + reserved beyond its limit. As a lease never costs more than was reserved
for it, and its price is fixed by its grant, the leases that are known here never overspend. A prediction instead of the
worst case would fill a budget better, and overspend by all that was predicted too low; the worst case is wrong for as
long as a lease runs only, and the caller's `max_tokens` bounds it.
"""

import datetime as dt
import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from services.kit.errors import DownstackError
from services.scheduler.domain.budget import Amount, Budget, BudgetKey, BudgetStatus, refusal_of

_DAY_S = 86_400.0
_EPOCH = dt.date(1970, 1, 1)


@dataclass(slots=True)
class _Account:
    """One budget's period: the ledger's sum, and what is not in it yet."""

    budget: Budget
    first: dt.date
    recorded: int = 0
    settled: int = 0
    reserved: int = 0
    passed: bool = False

    @property
    def spent(self) -> int:
        return self.recorded + self.settled

    def takes(self, amount: Amount) -> bool:
        """Whether another lease of that amount fits in."""
        budget = self.budget
        return amount.currency == budget.currency and self.spent + self.reserved + amount.nano <= budget.limit_nano

    def status(self) -> BudgetStatus:
        return BudgetStatus(
            budget=self.budget,
            first=self.first,
            following=self.budget.key.period.following(self.first),
            spent_nano=self.spent,
            reserved_nano=self.reserved,
        )


@dataclass(slots=True)
class _Tenant:
    """The accounts of a tenant, and its ended leases that the ledger is not known to have.

    `read` numbers the last reading of its sums; 0: some sum is not known.
    """

    accounts: dict[BudgetKey, _Account] = field(default_factory=dict)
    by_scope: dict[tuple[str, str], list[_Account]] = field(default_factory=dict)
    settled: OrderedDict[str, tuple[Amount, dt.date]] = field(default_factory=OrderedDict)
    read: int = 0

    def touched(self, amount: Amount) -> Iterator[_Account]:
        """The accounts that an amount counts against."""
        for scope in {(key, model) for key in ("", amount.key_id) for model in ("", amount.model)}:
            yield from self.by_scope.get(scope, ())


class Budgets:
    """All budgets and what is spent of them. What is said twice, or too late, changes nothing."""

    def __init__(self, *, max_settled: int, max_ended: int) -> None:
        self._max_settled = max_settled
        self._max_ended = max_ended
        self._tenants: dict[str, _Tenant] = {}
        self._open: dict[str, Amount] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._settled = 0
        self._passed: list[BudgetStatus] = []
        self._reads = 0
        self._offset = 0.0  # of the wall clock to `now`
        self._now = 0.0
        self._day = _EPOCH
        self._day_ends = 0.0

    # Time

    def set_clock(self, offset: float) -> None:
        """Take note of the wall clock: what it shows is `now` + `offset`. It may jump."""
        self._offset = offset
        self._see(self._now)

    def advance(self, now: float) -> None:
        """It is `now`: periods that have ended start anew."""
        self._now = now
        if now >= self._day_ends:
            self._see(now)

    def _see(self, now: float) -> None:
        days = int((now + self._offset) // _DAY_S)
        day = _EPOCH + dt.timedelta(days=max(0, days))
        self._day_ends = (days + 1) * _DAY_S - self._offset
        if day != self._day:
            self._day = day
            for tenant in self._tenants.values():
                for account in tenant.accounts.values():
                    self._begin(account, tenant)

    def _begin(self, account: _Account, tenant: _Tenant) -> None:
        """Let an account be that of this day's period. What is open will be settled in it, or later."""
        first = account.budget.key.period.first(self._day)
        if first != account.first:
            account.first, account.recorded, account.passed = first, 0, False
            tenant.read = 0
        account.settled = sum(amount.nano for amount, day in tenant.settled.values() if _counts(account, amount, day))

    # Budgets

    def load(self, budgets: Iterable[Budget]) -> None:
        """These are all budgets. What is known of those that stay, stays; what the others spent is to be read."""
        before, self._tenants = self._tenants, {}
        for budget in budgets:
            tenant_id = budget.key.tenant_id
            tenant = self._tenants.setdefault(tenant_id, _Tenant())
            known = before.get(tenant_id, _Tenant()).accounts.get(budget.key)
            account = _Account(budget, known.first if known else budget.key.period.first(self._day))
            if known:
                account.recorded = known.recorded
                account.passed = known.passed and known.budget == budget
            tenant.accounts[budget.key] = account
            tenant.by_scope.setdefault((budget.key.key_id, budget.key.model), []).append(account)
        for tenant_id, tenant in self._tenants.items():
            old = before.get(tenant_id, _Tenant())
            tenant.settled = old.settled
            tenant.read = old.read if tenant.accounts.keys() == old.accounts.keys() else 0
            for account in tenant.accounts.values():
                self._begin(account, tenant)
        self._settled = sum(len(tenant.settled) for tenant in self._tenants.values())
        for amount in self._open.values():
            self._reserve(amount, amount.nano)

    # Leases

    def reserve(self, lease_id: str, amount: Amount) -> None:
        """Count an open lease with the most that it can cost."""
        if lease_id in self._open or lease_id in self._ended or self._is_settled(lease_id, amount.tenant_id):
            return
        self._open[lease_id] = amount
        self._reserve(amount, amount.nano)

    def settle(self, lease_id: str, amount: Amount) -> None:
        """Count a lease that ended with what it cost; the first word stands, as in the ledger."""
        if lease_id in self._ended or self._is_settled(lease_id, amount.tenant_id):
            return
        self._close(lease_id)
        tenant = self._tenants.get(amount.tenant_id)
        if tenant is None or not amount.nano:
            self._remember(lease_id)
            return
        tenant.settled[lease_id] = (amount, self._day)
        self._settled += 1
        for account in tenant.touched(amount):
            if _counts(account, amount, self._day):
                account.settled += amount.nano
                self._note(account)
        if self._settled > self._max_settled:
            self._forget(tenant)

    def _forget(self, tenant: _Tenant) -> None:
        """Take it that the ledger has the tenant's lease that was settled first; the next reading corrects the sum."""
        lease_id, (amount, day) = next(iter(tenant.settled.items()))
        self._record(tenant, lease_id)
        for account in tenant.touched(amount):
            if _counts(account, amount, day):
                account.recorded += amount.nano

    def _is_settled(self, lease_id: str, tenant_id: str) -> bool:
        tenant = self._tenants.get(tenant_id)
        return tenant is not None and lease_id in tenant.settled

    def _close(self, lease_id: str) -> None:
        amount = self._open.pop(lease_id, None)
        if amount is not None:
            self._reserve(amount, -amount.nano)

    def _reserve(self, amount: Amount, nano: int) -> None:
        tenant = self._tenants.get(amount.tenant_id)
        for account in tenant.touched(amount) if tenant is not None else ():
            if account.budget.currency == amount.currency:
                account.reserved += nano
                self._note(account)

    def _note(self, account: _Account) -> None:
        """Tell once in a period that a budget is passed: a hard one by what is spent, a soft one by what is granted."""
        granted = account.reserved if account.budget.key.soft else 0
        if account.spent + granted > account.budget.limit_nano and not account.passed:
            account.passed = True
            self._passed.append(account.status())

    def _remember(self, lease_id: str) -> None:
        self._ended[lease_id] = None
        if len(self._ended) > self._max_ended:
            self._ended.popitem(last=False)

    # The ledger

    @property
    def waiting(self) -> int:
        """The number of settled leases that the ledger is not known to have."""
        return self._settled

    def unsure(self, limit: int) -> list[str]:
        """The tenants whose sums should be read next: those unread, then those with leases that the ledger may have."""

        def need(item: tuple[str, _Tenant]) -> tuple[bool, bool, int]:
            return item[1].read > 0, not item[1].settled, item[1].read

        return [tenant_id for tenant_id, _ in heapq.nsmallest(limit, self._tenants.items(), key=need)]

    def question(self, tenant_id: str) -> tuple[dt.date, list[Budget], list[str]]:
        """What to ask the ledger for: the day, the budgets whose sums are wanted, and the leases that may have rows."""
        tenant = self._tenants.get(tenant_id, _Tenant())
        return self._day, [account.budget for account in tenant.accounts.values()], list(tenant.settled)

    def answer(self, tenant_id: str, day: dt.date, sums: Mapping[BudgetKey, int], rows: Iterable[str]) -> None:
        """Take in what the ledger said: the sums on that day, and the leases whose rows they include.

        An answer to a question that would be another one now is not used.
        """
        tenant = self._tenants.get(tenant_id)
        if tenant is None or day != self._day or sums.keys() != tenant.accounts.keys():
            return
        self._reads += 1
        tenant.read = self._reads
        for lease_id in rows:
            self._close(lease_id)
            if not self._record(tenant, lease_id):
                self._remember(lease_id)
        for key, nano in sums.items():
            account = tenant.accounts[key]
            account.recorded = nano
            self._note(account)

    def _record(self, tenant: _Tenant, lease_id: str) -> bool:
        found = tenant.settled.pop(lease_id, None)
        if found is None:
            return False
        self._settled -= 1
        for account in tenant.touched(found[0]):
            if _counts(account, *found):
                account.settled -= found[0].nano
        self._remember(lease_id)
        return True

    # Answers

    def refusal(self, amount: Amount) -> DownstackError | None:
        """Why a lease of that amount must not be granted. None: every hard budget that it counts against has room."""
        tenant = self._tenants.get(amount.tenant_id)
        if tenant is None:
            return None
        hard = (account for account in tenant.touched(amount) if not account.budget.key.soft)
        full = [account.status() for account in hard if not account.takes(amount)]
        found = [refusal_of(status, amount, left_s=self._left_s(status)) for status in full]
        return max(found, key=lambda error: error.retry_after_s or 0.0, default=None)

    def _left_s(self, status: BudgetStatus) -> float:
        """The time until the budget's period ends."""
        return (status.following - _EPOCH).days * _DAY_S - self._offset - self._now

    def warnings(self, amount: Amount) -> tuple[str, ...]:
        """The soft budgets that a lease of that amount passes, or finds passed."""
        tenant = self._tenants.get(amount.tenant_id)
        if tenant is None:
            return ()
        soft = (account for account in tenant.touched(amount) if account.budget.key.soft)
        return tuple(sorted(str(account.budget.key) for account in soft if not account.takes(amount)))

    def passed(self) -> list[BudgetStatus]:
        """The budgets that were passed since this was asked last, each once in its period."""
        found, self._passed = self._passed, []
        return found

    def statuses(self, tenant_id: str | None = None) -> list[BudgetStatus]:
        """The budgets of a tenant, or all, in their order."""
        chosen = self._tenants.values() if tenant_id is None else [self._tenants.get(tenant_id, _Tenant())]
        found = [account.status() for tenant in chosen for account in tenant.accounts.values()]
        return sorted(found, key=lambda status: status.budget.key.order)

    def validate(self) -> None:
        """Check the invariants: every account is the sum of its leases."""
        assert self._settled == sum(len(tenant.settled) for tenant in self._tenants.values())
        assert not self._open.keys() & self._ended.keys()
        assert len(self._ended) <= self._max_ended
        for tenant_id, tenant in self._tenants.items():
            assert not tenant.settled.keys() & (self._open.keys() | self._ended.keys())
            for account in tenant.accounts.values():
                assert account.first == account.budget.key.period.first(self._day)
                mine = [a for a in self._open.values() if a.tenant_id == tenant_id and _fits(account, a)]
                assert account.reserved == sum(amount.nano for amount in mine) >= 0
                ended = [a.nano for a, day in tenant.settled.values() if _fits(account, a) and _counts(account, a, day)]
                assert account.settled == sum(ended) >= 0


def _fits(account: _Account, amount: Amount) -> bool:
    key = account.budget.key
    scope = key.key_id in {"", amount.key_id} and key.model in {"", amount.model}
    return scope and account.budget.currency == amount.currency


def _counts(account: _Account, amount: Amount, day: dt.date) -> bool:
    """Whether an amount that was settled on that day counts in the account's period."""
    return _fits(account, amount) and account.first <= day < account.budget.key.period.following(account.first)
