"""Budgets of the whole system, as an operator sets them by the command and a caller meets them at the router."""

import uuid
from collections.abc import Iterator

import pytest
from downstack.client import Client
from downstack.errors import ApiError
from downstack.scheduler.v1 import ledger_pb2

from tests.integration.local.system import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PROMPT = "What may I spend?"


@pytest.fixture
def tenant() -> str:
    return f"spender-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def caller(system: System, tenant: str) -> Iterator[Client]:
    """A client with a key of a tenant of its own."""
    key = system.json("keys", "create", "a spender's", "--tenant", tenant)["secret"]
    ends = system.state.endpoints
    with Client.connect(ends["router"], api_key=key, scheduler=ends["scheduler"], timeout_s=60) as client:
        yield client


def reserved(caller: Client) -> int:
    return sum(status.reserved.nano_units for status in caller.ledger.budgets())


def spent(client: Client) -> int:
    return max(status.spent.nano_units for status in client.ledger.budgets())


def test_a_hard_budget_is_kept_to(system: System, tenant: str, caller: Client) -> None:
    """It answers while there is money, refuses with the reason when there is not, and what it spent is the bill."""
    system.run("budgets", "set", "0.0001", "--tenant", tenant, "--period", "day")
    refusal: ApiError | None = None
    for _ in range(40):
        try:
            caller.generate_once(PROMPT, model="sim-small", max_tokens=64)
        except ApiError as error:
            refusal = error
            break
        # What is still reserved for the last answer would be refused for, too.
        until(lambda: not reserved(caller), why=lambda: f"{caller.ledger.budgets()}{system.tails()}")
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    assert refusal.metadata["limit_nano"] == "100000"
    assert refusal.retry_after_s is not None
    assert 0 < refusal.retry_after_s <= 86_400
    (status,) = caller.ledger.budgets()
    assert status.spent.nano_units + int(refusal.metadata["request_nano"]) > 100_000 >= status.spent.nano_units
    wanted = ledger_pb2.GetUsageRequest()
    until(
        lambda: sum(total.cost.nano_units for total in caller.ledger.totals(wanted)) == spent(caller),
        why=lambda: f"{caller.ledger.totals(wanted)} {caller.ledger.budgets()}{system.tails()}",
    )
    caller.generate_once(PROMPT, model="sim-small", max_tokens=1)
    (listed,) = system.json("budgets", "list", "--tenant", tenant)["budgets"]
    assert listed["budget"]["limit"]["nano_units"] == "100000"
    assert system.json("budgets", "remove", "--tenant", tenant, "--period", "day") == {"removed": True}
    assert caller.generate_once(PROMPT, model="sim-small", max_tokens=64).text


def test_a_soft_budget_warns(system: System, tenant: str, caller: Client) -> None:
    """The answer comes, its decision is marked, and the explanation says so."""
    system.run("budgets", "set", "0", "--tenant", tenant, "--period", "month", "--soft", "--model", "sim-small")
    answer = caller.generate_once(PROMPT, model="sim-small", max_tokens=4)
    assert answer.decision is not None
    assert list(answer.decision.budget_warnings) == ["tenant on sim-small per month"]
    explained = caller.explain(answer.request_id)
    assert list(explained.attempts[0].decision.budget_warnings) == ["tenant on sim-small per month"]


def test_what_the_command_refuses(system: System, tenant: str, caller: Client) -> None:
    """Mistakes are named in a sentence, and change nothing."""
    for argv, said in (
        (["set", "1", "--tenant", "nobody-there"], "TENANT_NOT_FOUND"),
        (["set", "1", "--tenant", tenant, "--key", "nokey000"], "KEY_NOT_FOUND"),
        (["set", "0.0000000001", "--tenant", tenant], "9 decimals"),
        (["set", "1", "--tenant", tenant, "--period", "year"], "day or month"),
        (["set", "1", "--tenant", tenant, "--currency", "EUR"], "USD"),
    ):
        done = system.run("budgets", *argv, check=False)
        assert done.returncode != 0
        assert said in done.stderr
    assert list(caller.ledger.budgets()) == []
    assert system.run("budgets", "remove", "--tenant", tenant).stdout.strip() == "There is no such budget."
