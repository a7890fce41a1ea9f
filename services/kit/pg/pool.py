"""A bounded pool of PostgreSQL connections whose transactions carry the caller's identity."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, TypeAlias

import asyncpg

from services.kit.errors import DownstackError
from services.kit.identity import Identity
from services.kit.pg.faults import fault_of

# The third value is an array in PostgreSQL's own text form, so that no group's name can break out of it.
_SET_IDENTITY = """
SELECT set_config('app.tenant_id', $1, true), set_config('app.principal', $2, true),
       set_config('app.groups', ($3::text[])::text, true)
"""
_RELEASE_TIMEOUT_S = 5.0

Connection: TypeAlias = asyncpg.Connection


class Database:
    """Transactions on one PostgreSQL database, as one role.

    Every failure to reach or use the server is a DownstackError DEPENDENCY_UNAVAILABLE, every lost race
    CONFLICTING_UPDATE; other asyncpg errors (a violated constraint, a wrong statement) pass unchanged.
    """

    def __init__(self, pool: Any, *, acquire_timeout_s: float) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        dsn: str,
        *,
        pool_min: int = 1,
        pool_max: int = 10,
        acquire_timeout_s: float = 2.0,
        statement_timeout_s: float = 10.0,
        lock_timeout_s: float = 5.0,
        init: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> AsyncIterator["Database"]:
        """Open the pool; `init` prepares each new connection.

        It opens without the server too, so that a service may start first: `ping` says whether the server is there.
        """
        options = {
            "dsn": dsn,
            "max_size": pool_max,
            "init": init,
            "timeout": acquire_timeout_s,
            # The server ends the statement first; this one is for a server that does not answer at all.
            "command_timeout": statement_timeout_s + 5.0,
            "max_inactive_connection_lifetime": 300.0,
            "server_settings": {
                "application_name": "downstack",
                "statement_timeout": _milliseconds(statement_timeout_s),
                "lock_timeout": _milliseconds(lock_timeout_s),
                "idle_in_transaction_session_timeout": _milliseconds(statement_timeout_s),
                "client_connection_check_interval": "10000",
            },
        }
        pool = await _create_pool(options, pool_min)
        try:
            yield cls(pool, acquire_timeout_s=acquire_timeout_s)
        finally:
            await _close(pool)

    @contextlib.asynccontextmanager
    async def transaction(
        self, identity: Identity | None, *, isolation: Literal["read_committed", "repeatable_read"] = "read_committed"
    ) -> AsyncIterator[Connection]:
        """A transaction that is committed at the end of the block, rolled back on any error.

        Statements of a `repeatable_read` one all see the same state of the database.

        With an identity, row-level security sees `app.tenant_id` (text, '' for an internal caller), `app.principal`
        and `app.groups` (`NULLIF(current_setting('app.groups', true), '')::text[]`), in this transaction only.
        """
        async with self._connection() as connection, connection.transaction(isolation=isolation):
            if identity is not None:
                await connection.execute(_SET_IDENTITY, identity.tenant_id, identity.principal, list(identity.groups))
            yield connection

    async def ping(self) -> None:
        """Return if the server answers, else raise DEPENDENCY_UNAVAILABLE."""
        async with self._connection() as connection:
            await connection.execute("SELECT 1")

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = None
        try:
            connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
            yield connection
        except DownstackError:
            raise
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                # The primary we were connected to is a standby now; it would refuse every write from here on.
                await self._pool.expire_connections()
            fault = fault_of(error)
            if fault is None:
                raise
            raise fault from error
        finally:
            if connection is not None:
                await self._release(connection)

    async def _release(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection, timeout=_RELEASE_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()  # in doubt: never give it to anybody else


async def _create_pool(options: dict[str, Any], pool_min: int) -> Any:
    try:
        return await asyncpg.create_pool(min_size=pool_min, **options)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if fault_of(error) is None:
            raise
        return await asyncpg.create_pool(min_size=0, **options)  # connects when it is used


async def _close(pool: Any) -> None:
    try:
        async with asyncio.timeout(_RELEASE_TIMEOUT_S):
            await pool.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
