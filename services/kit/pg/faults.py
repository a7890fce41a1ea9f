"""What a failure of PostgreSQL means to a caller."""

import asyncpg

from services.kit.errors import DownstackError, Reason

# The server or the way to it is gone or overloaded; the same statement may work later or elsewhere.
_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.OutOfMemoryError,
    asyncpg.DiskFullError,
    asyncpg.InvalidAuthorizationSpecificationError,  # wrong password included: ours, never the caller's
    asyncpg.InvalidCatalogNameError,
    asyncpg.InterfaceError,
)
_CONFLICT = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)


def fault_of(error: BaseException) -> DownstackError | None:
    """The error a caller may see instead of `error`, or None where `error` is a mistake of ours."""
    if isinstance(error, _CONFLICT):
        return DownstackError(Reason.CONFLICTING_UPDATE, "Another change was made at the same time; try again.")
    if isinstance(error, _UNAVAILABLE):
        # The class only: the server's text can quote values.
        return DownstackError(
            Reason.DEPENDENCY_UNAVAILABLE,
            "PostgreSQL cannot be used right now.",
            metadata={"dependency": "postgresql", "fault": type(error).__name__},
            retry_after_s=1.0,
        )
    return None
