"""Which system a command talks to, and with which key: from options, the environment, or the local run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from downstack.cli.output import CommandError
from downstack.client import Client
from downstack.local.folder import DataFolder, find_folder

TargetOption = Annotated[
    str, typer.Option("--target", envvar="DOWNSTACK_TARGET", help="Router, host:port.", show_default=False)
]
RetrieverOption = Annotated[
    str, typer.Option("--retriever", envvar="DOWNSTACK_TARGET_RETRIEVER", help="Retriever, host:port.")
]
SchedulerOption = Annotated[
    str, typer.Option("--scheduler", envvar="DOWNSTACK_TARGET_SCHEDULER", help="Scheduler, host:port.")
]
KafkaOption = Annotated[str, typer.Option("--kafka", envvar="DOWNSTACK_TARGET_KAFKA", help="Kafka, host:port.")]
KeyOption = Annotated[
    str, typer.Option("--api-key", envvar="DOWNSTACK_API_KEY", help="API key.", show_default=False, show_envvar=True)
]
AdminKeyOption = Annotated[
    str, typer.Option("--admin-key", envvar="DOWNSTACK_ADMIN_KEY", help="Key with the scope admin.")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="DOWNSTACK_DATA_DIR",
        help="Data folder of the local run. Default: the nearest .downstack.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, kw_only=True)
class Where:
    """What the options said; empty where they said nothing."""

    data_dir: Path | None = None
    target: str = ""
    retriever: str = ""
    scheduler: str = ""
    kafka: str = ""
    api_key: str = field(default="", repr=False)

    @property
    def folder(self) -> DataFolder:
        """The data folder that goes with it."""
        return DataFolder(find_folder(self.data_dir, start=Path.cwd()))

    def endpoint(self, part: str, *, option: str) -> str:
        """The address of a part: as asked for, or that of the local run."""
        asked = {"router": self.target, "retriever": self.retriever, "scheduler": self.scheduler, "kafka": self.kafka}
        if asked[part]:
            return asked[part]
        if self.target:
            raise CommandError(f"--target was given, so give the {part} with {option} too", reason="NO_ENDPOINT")
        return self.folder.running().endpoints[part]

    def key(self) -> str:
        """The caller's key."""
        credentials = None if self.target else self.folder.credentials()
        found = self.api_key or (credentials.api_key if credentials else "")
        if not found:
            raise CommandError("there is no API key: give --api-key or set DOWNSTACK_API_KEY", reason="NO_API_KEY")
        return found

    def admin_key(self) -> str:
        """The operator's key, which may manage tenants and keys."""
        local = "" if self.target else self.folder.admin_key()
        found = self.api_key or local
        if not found:
            raise CommandError(
                "there is no admin key: give --admin-key or set DOWNSTACK_ADMIN_KEY", reason="NO_API_KEY"
            )
        return found


def inference(where: Where) -> Client:
    """A client of the router."""
    return Client.connect(where.endpoint("router", option="--target"), api_key=where.key())


def administration(where: Where) -> Client:
    """A client of the router with the operator's key."""
    return Client.connect(where.endpoint("router", option="--target"), api_key=where.admin_key())


def retrieval(where: Where) -> Client:
    """A client of the retriever."""
    retriever = where.endpoint("retriever", option="--retriever")
    return Client.connect(where.target or retriever, api_key=where.key(), retriever=retriever)


def ledger(where: Where) -> Client:
    """A client of the ledger."""
    scheduler = where.endpoint("scheduler", option="--scheduler")
    return Client.connect(where.target or scheduler, api_key=where.key(), scheduler=scheduler)


def budgeting(where: Where) -> Client:
    """A client of router and ledger with the operator's key."""
    router, scheduler = where.endpoint("router", option="--target"), where.endpoint("scheduler", option="--scheduler")
    return Client.connect(router, api_key=where.admin_key(), scheduler=scheduler)
