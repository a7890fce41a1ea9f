"""Budgets: every amount counts once, whatever is repeated, late or out of order, and no hard limit is overspent."""

import datetime as dt
from typing import Any

import pytest
from downstack.types.v1.usage_pb2 import Price as PriceMessage
from downstack.types.v1.usage_pb2 import TokenUsage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.kit.errors import Code, Reason
from services.kit.pricing import cost_of
from services.scheduler.domain.budget import Amount, Budget, BudgetKey, Period, in_units, reserved, used
from services.scheduler.domain.budgets import Budgets
from services.scheduler.domain.lease import Grant, Usage
from services.scheduler.domain.request import Price, Priority

DAY_S = 86_400.0
NOON = dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC).timestamp()
TODAY = dt.date(2027, 1, 31)
PRICE = Price(version="1", currency="USD", input_nano=100, cached_nano=10, output_nano=400)


def key(*, key_id: str = "", model: str = "", period: Period = Period.DAY, soft: bool = False) -> BudgetKey:
    return BudgetKey("t1", key_id, model, period, soft)


def budget(limit_nano: int = 1000, *, currency: str = "USD", **of: Any) -> Budget:
    return Budget(key(**of), limit_nano, currency)


def amount(nano: int, *, key_id: str = "k1", model: str = "m", tenant_id: str = "t1", currency: str = "USD") -> Amount:
    return Amount(tenant_id, key_id, model, currency, nano)


def make(*loaded: Budget, max_settled: int = 100, max_ended: int = 1000) -> Budgets:
    """Budgets at noon of the last day of a month, whose sums are known to be 0."""
    made = Budgets(max_settled=max_settled, max_ended=max_ended)
    made.set_clock(NOON)
    made.load(loaded)
    read(made)
    return made


def read(budgets: Budgets, rows: dict[str, tuple[Amount, dt.date]] | None = None) -> None:
    """Let the budgets of t1 learn what a ledger with these rows says."""
    day, asked, leases = budgets.question("t1")
    rows = rows or {}
    sums = {each.key: ledger_sum(each, day, rows) for each in asked}
    budgets.answer("t1", day, sums, [lease for lease in leases if lease in rows])
    budgets.validate()


def ledger_sum(budget: Budget, day: dt.date, rows: dict[str, tuple[Amount, dt.date]]) -> int:
    first = budget.key.period.first(day)
    following = budget.key.period.following(first)
    return sum(
        row.nano
        for row, at in rows.values()
        if row.tenant_id == budget.key.tenant_id
        and budget.key.key_id in {"", row.key_id}
        and budget.key.model in {"", row.model}
        and row.currency == budget.currency
        and first <= at < following
    )


def test_a_lease_is_reserved_then_settled_then_recorded() -> None:
    """It counts once at every step: first with the most that it can cost, then with what it cost."""
    budgets = make(budget(1000))
    budgets.reserve("a", amount(600))
    (status,) = budgets.statuses()
    assert (status.spent_nano, status.reserved_nano, status.left_nano) == (0, 600, 400)
    budgets.settle("a", amount(250))
    (status,) = budgets.statuses()
    assert (status.spent_nano, status.reserved_nano) == (250, 0)
    read(budgets, {"a": (amount(250), TODAY)})
    (status,) = budgets.statuses("t1")
    assert (status.spent_nano, status.reserved_nano) == (250, 0)
    assert budgets.statuses("t2") == []


def test_a_hard_budget_refuses_what_could_pass_it() -> None:
    """The refusal says how much is left, and when it is worth asking again: when the period ends."""
    budgets = make(budget(1000))
    assert budgets.refusal(amount(1000)) is None
    budgets.settle("a", amount(900))
    assert budgets.refusal(amount(100)) is None
    error = budgets.refusal(amount(101))
    assert error is not None
    assert (error.reason, error.code) == (Reason.QUOTA_EXCEEDED, Code.RESOURCE_EXHAUSTED)
    assert error.retry_after_s == 12 * 3600
    assert error.metadata["period_ends"] == "2027-02-01T00:00:00Z"
    assert (error.metadata["spent_nano"], error.metadata["limit_nano"]) == ("900", "1000")
    assert error.metadata["subject"] == "tenant:t1"
    assert budgets.refusal(amount(101, tenant_id="t2")) is None, "another tenant has no budget"


def test_what_open_leases_may_leave_over_is_worth_asking_for_soon() -> None:
    """A reservation is mostly given back: the caller need not wait for the end of the period."""
    budgets = make(budget(1000))
    budgets.reserve("a", amount(900))
    error = budgets.refusal(amount(200))
    assert error is not None
    assert error.retry_after_s == 1.0
    budgets.settle("a", amount(10))
    assert budgets.refusal(amount(200)) is None


@pytest.mark.parametrize(
    ("of", "counts"),
    [
        ({}, True),
        ({"key_id": "k1"}, True),
        ({"key_id": "k2"}, False),
        ({"model": "m"}, True),
        ({"model": "n"}, False),
        ({"key_id": "k1", "model": "m"}, True),
        ({"key_id": "k1", "model": "n"}, False),
        ({"period": Period.MONTH}, True),
    ],
)
def test_whose_spending_a_budget_limits(of: dict[str, Any], *, counts: bool) -> None:
    """A tenant's, a key's, a model's, or a key's on a model."""
    budgets = make(budget(1000, **of))
    budgets.settle("a", amount(1000))
    assert (budgets.refusal(amount(1)) is not None) is counts


def test_a_soft_budget_warns_and_refuses_nothing() -> None:
    """Each placement beyond it is marked; that it was passed is told once in its period."""
    budgets = make(budget(1000, soft=True))
    assert budgets.warnings(amount(1000)) == ()
    assert budgets.warnings(amount(1001)) == ("tenant per day",)
    budgets.reserve("a", amount(1001))
    budgets.reserve("b", amount(1))
    (passed,) = budgets.passed()
    assert (passed.budget.key.soft, passed.reserved_nano) == (True, 1001)
    assert budgets.passed() == []
    assert budgets.refusal(amount(5000)) is None
    budgets.advance(DAY_S)
    budgets.reserve("c", amount(1001))
    assert len(budgets.passed()) == 1, "a new period"


def test_periods_begin_anew_in_utc() -> None:
    """At midnight a day's budget is whole again, and at the end of a month both; what is open goes on counting."""
    budgets = make(budget(1000), budget(2000, period=Period.MONTH))
    budgets.settle("a", amount(900))
    budgets.reserve("b", amount(50))
    budgets.advance(12 * 3600 - 0.001)
    assert [status.spent_nano for status in budgets.statuses()] == [900, 900]
    budgets.advance(12 * 3600)
    assert [(s.spent_nano, s.reserved_nano) for s in budgets.statuses()] == [(0, 50), (0, 50)]
    budgets.settle("b", amount(40))
    budgets.advance(36 * 3600)
    assert [(s.spent_nano, s.first.day) for s in budgets.statuses()] == [(0, 2), (40, 1)]
    budgets.validate()


def test_a_clock_that_jumps_back_finds_its_period_again() -> None:
    """The sums of a period are read again when it is this one again."""
    budgets = make(budget(1000))
    budgets.settle("a", amount(900))
    read(budgets, {"a": (amount(900), TODAY)})
    budgets.set_clock(NOON + DAY_S)
    assert budgets.statuses()[0].spent_nano == 0
    budgets.set_clock(NOON)
    assert budgets.unsure(1) == ["t1"]
    read(budgets, {"a": (amount(900), TODAY)})
    assert budgets.statuses()[0].spent_nano == 900


def test_another_currency_cannot_be_compared() -> None:
    """A hard budget in another currency than the price grants nothing; a soft one is not touched by it."""
    budgets = make(budget(1000, currency="EUR"))
    error = budgets.refusal(amount(1))
    assert error is not None
    assert error.retry_after_s is None
    budgets.settle("a", amount(5))
    assert budgets.statuses()[0].spent_nano == 0


def test_a_budget_that_is_set_counts_what_runs() -> None:
    """Leases that are open when it is set count, and the limit of one that stays may change."""
    budgets = make()
    budgets.reserve("a", amount(600))
    budgets.load([budget(1000)])
    assert budgets.unsure(10) == ["t1"]
    assert budgets.statuses()[0].reserved_nano == 600
    budgets.load([budget(500), budget(7, soft=True)])
    assert [status.budget.limit_nano for status in budgets.statuses()] == [500, 7]
    assert budgets.refusal(amount(1)) is not None
    budgets.load([])
    assert budgets.refusal(amount(1)) is None
    budgets.validate()


def test_an_answer_to_an_old_question_is_not_used() -> None:
    """Neither one of yesterday nor one that lacks a budget says what is spent."""
    budgets = make(budget(1000))
    budgets.settle("a", amount(300))
    budgets.answer("t1", TODAY - dt.timedelta(days=1), {key(): 5}, ["a"])
    budgets.answer("t1", TODAY, {}, ["a"])
    budgets.answer("t2", TODAY, {key(): 5}, ["a"])
    assert budgets.statuses()[0].spent_nano == 300


def test_settled_leases_are_bounded() -> None:
    """While the ledger lags for long, the oldest are taken for recorded: what is spent stays."""
    budgets = make(budget(10_000), max_settled=3)
    for number in range(10):
        budgets.settle(f"l{number}", amount(100))
        budgets.validate()
    assert budgets.statuses()[0].spent_nano == 1000
    assert len(budgets.question("t1")[2]) == 3


def grant(**changed: Any) -> Grant:
    fields: dict[str, Any] = {
        "lease_id": "l",
        "request_id": "r",
        "attempt": 1,
        "tenant_id": "t1",
        "key_id": "k1",
        "worker_id": "w1",
        "worker_epoch": "e1",
        "model": "m",
        "requested_model": "m",
        "adapter": "",
        "cache_salt": "",
        "prompt_tokens": 100,
        "max_output_tokens": 50,
        "priority": Priority.STANDARD,
        "conversation_id": "",
        "labels": {},
        "price": PRICE,
        "granted_at": 0.0,
        "expires_at": 30.0,
        "queue_ms": 0.0,
        "predicted_cached_tokens": 64,
        "retrieved_tokens": 0,
    }
    return Grant(**{**fields, **changed})


COUNTS = st.none() | st.integers(0, 100)


@given(COUNTS, st.none() | st.integers(0, 200), st.none() | st.integers(0, 150), st.integers(1, 3))
def test_a_lease_costs_what_the_ledger_charges_and_at_most_its_reservation(
    read_tokens: int | None, cached: int | None, written: int | None, answers: int
) -> None:
    """The domain's cost is the kit's, for every count that is or is not known."""
    lease = grant(answers=answers)
    usage = Usage(input_total=read_tokens, input_cached=cached, output_total=written)
    wire = TokenUsage(input_total=read_tokens, input_cached=cached, output_total=written)
    price = PriceMessage(version="1", currency="USD", input_nano=100, cached_nano=10, output_nano=400)
    assert used(lease, usage).nano == cost_of(price, wire).nano_units
    if (written or 0) <= answers * lease.max_output_tokens:
        assert used(lease, usage).nano <= reserved(lease).nano
    assert used(lease, None).nano == 0


@given(st.integers(-(10**15), 10**15))
def test_amounts_for_people_are_exact(nano: int) -> None:
    text = in_units(nano, "USD").removesuffix(" USD")
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    units, _, rest = digits.partition(".")
    assert sign * (int(units) * 10**9 + int(rest.ljust(9, "0") or 0)) == nano


SCOPES = [
    budget(5_000),
    budget(50_000, period=Period.MONTH),
    budget(2_000, key_id="k1"),
    budget(2_000, model="m", period=Period.MONTH),
    budget(1_000, key_id="k2", model="n"),
    budget(3_000, soft=True),
]
LEASES = st.integers(0, 11)


class Spending(RuleBasedStateMachine):
    """A scheduler, the leases of others that it adopts, and a ledger that lags, against a plain account of all."""

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.budgets = make(*SCOPES, max_ended=10_000)
        self.open: dict[int, Amount] = {}
        self.ended: dict[int, tuple[Amount, dt.date]] = {}
        self.rows: dict[str, tuple[Amount, dt.date]] = {}
        self.asked: tuple[dt.date, dict[BudgetKey, int], list[str]] | None = None

    def _of(self, number: int, nano: int) -> Amount:
        return amount(nano, key_id=f"k{number % 3}", model="mn"[number % 2])

    @property
    def today(self) -> dt.date:
        return dt.datetime.fromtimestamp(NOON + self.now, dt.UTC).date()

    @rule(number=LEASES, nano=st.integers(0, 900))
    def asks(self, number: int, nano: int) -> None:
        """A request is granted if no hard budget refuses it; so nothing is overspent by what is granted here."""
        wanted = self._of(number, nano)
        if number in self.open or number in self.ended or self.budgets.refusal(wanted) is not None:
            return
        self.budgets.reserve(f"l{number}", wanted)
        self.open[number] = wanted
        for status in self.budgets.statuses("t1"):
            scope = status.budget.key
            mine = scope.key_id in {"", wanted.key_id} and scope.model in {"", wanted.model}
            assert scope.soft or not mine or status.left_nano >= 0

    @rule(number=LEASES, nano=st.integers(0, 900))
    def reports_again(self, number: int, nano: int) -> None:
        """A lease that is open or has ended is told of again: nothing changes."""
        if number in self.open or number in self.ended:
            before = self.budgets.statuses()
            self.budgets.reserve(f"l{number}", self._of(number, nano))
            assert self.budgets.statuses() == before

    @rule(number=LEASES, share=st.floats(0, 1))
    def ends(self, number: int, share: float) -> None:
        """A lease ends; told twice, it counts once, with what was said first."""
        granted = self.open.pop(number, None)
        if granted is not None:
            cost = self._of(number, int(granted.nano * share))
            self.ended[number] = (cost, self.today)
            self.budgets.settle(f"l{number}", cost)
        if number in self.ended:
            before = self.budgets.statuses()
            self.budgets.settle(f"l{number}", self._of(number, 7))
            assert self.budgets.statuses() == before

    @rule(number=LEASES)
    def reaches_the_ledger(self, number: int) -> None:
        if number in self.ended:
            self.rows.setdefault(f"l{number}", self.ended[number])

    @rule()
    def is_asked(self) -> None:
        """The ledger is read; its answer comes later."""
        day, asked, leases = self.budgets.question("t1")
        sums = {each.key: ledger_sum(each, day, self.rows) for each in asked}
        self.asked = (day, sums, [lease for lease in leases if lease in self.rows])

    @precondition(lambda self: self.asked is not None)
    @rule()
    def answers(self) -> None:
        assert self.asked is not None
        self.budgets.answer("t1", *self.asked)
        self.asked = None

    @rule(hours=st.integers(1, 30))
    def time_passes(self, hours: int) -> None:
        """Answers that are under way are of their day; sums of a new period are read at once."""
        self.now += hours * 3600
        self.budgets.advance(self.now)
        self.asked = None
        read(self.budgets, self.rows)

    @rule(chosen=st.sets(st.sampled_from(SCOPES), min_size=1))
    def budgets_change(self, chosen: set[Budget]) -> None:
        """What is set anew has its sums read before anybody relies on it."""
        self.budgets.load(chosen)
        self.asked = None
        read(self.budgets, self.rows)

    @invariant()
    def agrees(self) -> None:
        """Accounts are the sums of their leases, nothing is negative, and no cost is missing."""
        self.budgets.validate()
        costs = {f"l{number}": ended for number, ended in self.ended.items()}
        for status in self.budgets.statuses():
            assert status.spent_nano >= 0
            assert status.reserved_nano >= 0
            assert status.spent_nano >= ledger_sum(status.budget, self.today, costs)

    def teardown(self) -> None:
        """When all has reached the ledger, what is spent is the ledger's sum, to the last unit."""
        for number in list(self.open):
            self.ends(number, 0.5)
        self.rows = {f"l{number}": ended for number, ended in self.ended.items()}
        read(self.budgets, self.rows)
        for status in self.budgets.statuses():
            assert status.spent_nano == ledger_sum(status.budget, self.today, self.rows)
            assert status.reserved_nano == 0
            assert self.budgets.question("t1")[2] == []


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
