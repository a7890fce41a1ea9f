"""The command's tree."""

from collections.abc import Callable

import typer

from downstack.cli import accounts, budgets, documents, events, inference, ledger, local, run
from downstack.cli.chat import chat
from downstack.cli.demo import demo
from downstack.cli.replay import replay
from downstack.cli.top import top

app = typer.Typer(
    help="Serve language models: run Downstack on this machine, and use it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: tuple[Callable[..., None], ...] = (
    *(run.up, run.down, local.status, top, local.logs, local.doctor, demo),
    *(chat, inference.generate, inference.models, inference.explain),
    *(documents.ingest, documents.search, ledger.usage, replay),
)
for command in _COMMANDS:
    app.command()(command)
app.add_typer(accounts.keys, name="keys")
app.add_typer(budgets.budgets, name="budgets")
app.add_typer(events.events, name="events")
