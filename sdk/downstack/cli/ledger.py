"""The command `usage`: what was used and what it cost."""

from collections.abc import Sequence
from typing import Annotated

import typer

from downstack.cli.output import as_dict, count, enum_name, money, print_json, print_table
from downstack.cli.session import DataDirOption, JsonOption, KeyOption, SchedulerOption, Where
from downstack.cli.session import ledger as connect
from downstack.scheduler.v1 import ledger_pb2
from downstack.types.v1 import usage_pb2

_GROUPS = {
    "": ledger_pb2.USAGE_GROUP_UNSPECIFIED,
    "model": ledger_pb2.USAGE_GROUP_MODEL,
    "key": ledger_pb2.USAGE_GROUP_KEY,
    "day": ledger_pb2.USAGE_GROUP_DAY,
    "worker": ledger_pb2.USAGE_GROUP_WORKER,
}
_TOTALS = ("requests", "rows", "input_tokens", "cached_tokens", "output_tokens")


def usage(
    by: Annotated[str, typer.Option(help="Group by model, key, day or worker.")] = "",
    rows: Annotated[int, typer.Option(min=0, max=1000, help="Show this many rows instead of totals.")] = 0,
    request: Annotated[str, typer.Option(help="Only this request.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    scheduler: SchedulerOption = "",
    api_key: KeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show what was used and what it cost."""
    if by not in _GROUPS:
        raise typer.BadParameter(f"--by is model, key, day or worker, not {by!r}")
    chosen = ledger_pb2.UsageFilter(request_id=request, model=model)
    with connect(Where(scheduler=scheduler, api_key=api_key, data_dir=data_dir)) as client:
        if rows:
            _show_rows(client.ledger.rows(ledger_pb2.ListUsageRequest(filter=chosen, page_size=rows)), json=json)
            return
        totals = client.ledger.totals(ledger_pb2.GetUsageRequest(filter=chosen, group_by=_GROUPS[by]))
    if json:
        print_json({"totals": [as_dict(total) for total in totals]})
        return
    table = [[total.group or "all", *(str(getattr(total, n)) for n in _TOTALS), money(total.cost)] for total in totals]
    print_table([by or "", "requests", "rows", "input", "cached", "output", "cost"], table)


def _show_rows(rows: Sequence[ledger_pb2.UsageRow], *, json: bool) -> None:
    if json:
        print_json({"rows": [as_dict(row) for row in rows]})
        return
    print_rows(rows)


def print_rows(rows: Sequence[ledger_pb2.UsageRow]) -> None:
    """Ledger rows as a table."""
    table = [
        [
            row.request_id,
            str(row.attempt),
            row.model,
            row.worker_id,
            count(row.usage, "input_total"),
            count(row.usage, "input_cached"),
            count(row.usage, "output_total"),
            money(row.cost),
            enum_name(usage_pb2.FinishReason, row.finish_reason, "FINISH_REASON_"),
        ]
        for row in rows
    ]
    print_table(["request", "attempt", "model", "worker", "input", "cached", "output", "cost", "ended"], table)
