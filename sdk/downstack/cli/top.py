"""The command `top`: the fleet, live."""

import json as jsonlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from downstack.cli.output import as_dict, console, enum_name
from downstack.cli.session import AdminKeyOption, DataDirOption, JsonOption, SchedulerOption, Where, budgeting
from downstack.scheduler.v1 import scheduler_pb2
from downstack.types.v1 import chat_pb2

_MOST_QUEUES = 12


def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two views.")] = 1.0,
    scheduler: SchedulerOption = "",
    admin_key: AdminKeyOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show the workers, their batches, caches and hits, what waits, and what is spent. Ctrl-C ends it.

    With --json one object a line, for each view.
    """
    where = Where(scheduler=scheduler, target=scheduler, api_key=admin_key, data_dir=data_dir)
    with budgeting(where) as client:
        views = iter([client.fleet.now()]) if once else client.fleet.watch(interval_s=interval)
        if json:
            for fleet in views:
                print(jsonlib.dumps(as_dict(fleet), ensure_ascii=False), flush=True)
        elif once:
            console().print(_page(next(views)))
        else:
            _follow(views)


def _follow(views: Iterator[scheduler_pb2.Fleet]) -> None:
    with Live(console=console(), auto_refresh=False, screen=console().is_terminal) as live:
        for fleet in views:
            live.update(_page(fleet), refresh=True)


def _page(fleet: scheduler_pb2.Fleet) -> RenderableType:
    return Group(_headline(fleet), _workers(fleet), *([_waiting(fleet)] if fleet.waiting else []))


def _headline(fleet: scheduler_pb2.Fleet) -> Text:
    models = "; ".join(
        f"{model.name}: {model.ready_workers} ready, {model.replicas_wanted} wanted" for model in fleet.models
    )
    spent = ", ".join(f"{rate.nano_units_per_hour / 1e9:.4f} {rate.currency}/h" for rate in fleet.spend) or "nothing"
    return Text(f"{fleet.scheduler_id} · {fleet.queued} waiting · spending {spent}\n{models or 'no workers'}\n")


def _workers(fleet: scheduler_pb2.Fleet) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("worker", "model", "phase"):
        table.add_column(name)
    for name in ("batch", "engine queue", "leases", "KV used", "blocks", "hits", "tokens"):
        table.add_column(name, justify="right")
    for worker in fleet.workers:
        load = worker.load
        table.add_row(
            worker.worker_id,
            worker.spec.model,
            enum_name(scheduler_pb2.WorkerPhase, worker.phase, "WORKER_PHASE_"),
            f"{load.running_requests}/{worker.spec.max_num_seqs}",
            str(load.waiting_requests),
            str(worker.leases),
            f"{100 * load.kv_usage:.0f} %",
            str(worker.indexed_blocks) if worker.index_trusted else "unknown",
            f"{100 * load.prefix_hits / load.prefix_queries:.0f} %" if load.prefix_queries else "",
            str(load.generated_tokens),
        )
    return table


def _waiting(fleet: scheduler_pb2.Fleet) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="waiting", title_justify="left")
    table.add_column("class")
    table.add_column("tenant")
    table.add_column("requests", justify="right")
    for one in fleet.waiting[:_MOST_QUEUES]:
        table.add_row(enum_name(chat_pb2.Priority, one.priority, "PRIORITY_"), one.tenant_id, str(one.requests))
    return table
