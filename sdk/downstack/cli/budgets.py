"""The commands `budgets set|list|remove`."""

import uuid
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from downstack.cli.output import CommandError, as_dict, console, money, print_json, print_table
from downstack.cli.session import (
    AdminKeyOption,
    DataDirOption,
    JsonOption,
    KeyOption,
    SchedulerOption,
    TargetOption,
    Where,
    budgeting,
    ledger,
)
from downstack.client import Client
from downstack.scheduler.v1 import ledger_pb2
from downstack.types.v1 import usage_pb2

budgets = typer.Typer(help="Set, list and remove budgets.", no_args_is_help=True, rich_markup_mode=None)

TenantOption = Annotated[str, typer.Option("--tenant", help="The tenant's name or UUID.")]
BudgetKeyOption = Annotated[str, typer.Option("--key", help="Only this key's spending; see `keys list`. Default: all.")]
ModelOption = Annotated[str, typer.Option("--model", help="Only spending on this model. Default: all.")]
PeriodOption = Annotated[str, typer.Option("--period", help="day or month, UTC.")]
SoftOption = Annotated[bool, typer.Option("--soft", help="Warn instead of refusing.")]
_PERIODS = {"day": ledger_pb2.BUDGET_PERIOD_DAY, "month": ledger_pb2.BUDGET_PERIOD_MONTH}
_NANO_DIGITS = 9


@budgets.command("set")
def set_budget(
    limit: Annotated[str, typer.Argument(help="The amount, such as 12.50.")],
    tenant: TenantOption = "default",
    period: PeriodOption = "month",
    key: BudgetKeyOption = "",
    model: ModelOption = "",
    soft: SoftOption = False,
    currency: Annotated[str, typer.Option(help="Default: that of the price list.")] = "",
    target: TargetOption = "",
    scheduler: SchedulerOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Set what may be spent in each period; set again, it changes the limit."""
    amount = usage_pb2.Cost(nano_units=_nano_units(limit), currency=currency)
    with budgeting(Where(target=target, scheduler=scheduler, api_key=admin_key, data_dir=data_dir)) as client:
        request = ledger_pb2.SetBudgetRequest(
            tenant_id=_tenant_id(client, tenant),
            key_id=key,
            model=model,
            period=_period(period),
            limit=amount,
            soft=soft,
        )
        status = client.ledger.set_budget(request)
    if json:
        print_json(as_dict(status))
        return
    _print([status])


@budgets.command("list")
def list_budgets(
    tenant: Annotated[str, typer.Option("--tenant", help="A tenant, by its name or UUID. Default: your own.")] = "",
    everybody: Annotated[bool, typer.Option("--all", help="Those of all tenants.")] = False,
    target: TargetOption = "",
    scheduler: SchedulerOption = "",
    api_key: KeyOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List budgets and what is spent of them. Those of others are the operator's to see."""
    where = Where(target=target, scheduler=scheduler, api_key=api_key, data_dir=data_dir)
    if tenant or everybody:
        where = Where(target=target, scheduler=scheduler, api_key=admin_key, data_dir=data_dir)
        with budgeting(where) as client:
            found = client.ledger.budgets(_tenant_id(client, tenant) if tenant else "")
    else:
        with ledger(where) as client:
            found = client.ledger.budgets()
    if json:
        print_json({"budgets": [as_dict(status) for status in found]})
        return
    _print(found)


@budgets.command()
def remove(
    tenant: TenantOption = "default",
    period: PeriodOption = "month",
    key: BudgetKeyOption = "",
    model: ModelOption = "",
    soft: Annotated[bool, typer.Option("--soft", help="The soft one. Default: the hard one.")] = False,
    target: TargetOption = "",
    scheduler: SchedulerOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Lift a budget."""
    with budgeting(Where(target=target, scheduler=scheduler, api_key=admin_key, data_dir=data_dir)) as client:
        request = ledger_pb2.RemoveBudgetRequest(
            tenant_id=_tenant_id(client, tenant), key_id=key, model=model, period=_period(period), soft=soft
        )
        removed = client.ledger.remove_budget(request)
    if json:
        print_json({"removed": removed})
    else:
        console().print("The budget is lifted." if removed else "There is no such budget.", markup=False)


def _tenant_id(client: Client, tenant: str) -> str:
    try:
        return str(uuid.UUID(tenant))
    except ValueError:
        pass
    for each in client.admin.tenants():
        if each.name == tenant:
            return each.tenant_id
    raise CommandError(f"there is no tenant {tenant}", reason="TENANT_NOT_FOUND")


def _period(name: str) -> "ledger_pb2.BudgetPeriod.ValueType":
    if name not in _PERIODS:
        raise typer.BadParameter(f"--period is day or month, not {name!r}")
    return _PERIODS[name]


def _nano_units(text: str) -> int:
    """An amount in nano units, exact."""
    try:
        nano = Decimal(text).scaleb(_NANO_DIGITS)
    except InvalidOperation:
        nano = Decimal("NaN")
    if not nano.is_finite() or nano < 0 or nano != nano.to_integral_value() or nano >= 2**63:
        raise typer.BadParameter(f"an amount has at most {_NANO_DIGITS} decimals and is not below 0, unlike {text!r}")
    return int(nano)


def _print(found: list[ledger_pb2.BudgetStatus]) -> None:
    rows = [
        [
            status.budget.tenant_id,
            status.budget.key_id or "all",
            status.budget.model or "all",
            "day" if status.budget.period == ledger_pb2.BUDGET_PERIOD_DAY else "month",
            "soft" if status.budget.soft else "hard",
            money(status.budget.limit),
            money(status.spent),
            money(status.reserved),
            status.period_end.ToDatetime().strftime("%Y-%m-%d"),
        ]
        for status in found
    ]
    print_table(["tenant", "key", "model", "per", "kind", "limit", "spent", "reserved", "until"], rows)
