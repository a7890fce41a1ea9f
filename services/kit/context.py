"""What belongs to the call that is being served: its request id, its tenant and its deadline."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("downstack_request_id", default="")
tenant: ContextVar[str] = ContextVar("downstack_tenant", default="")
# On the monotonic clock (time.monotonic), in seconds. None: no deadline.
deadline: ContextVar[float | None] = ContextVar("downstack_deadline", default=None)


def current_request_id() -> str:
    """The id of the request that is being served; empty outside of one."""
    return request_id.get()
