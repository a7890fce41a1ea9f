"""What a channel of the client is made with, for the sync and the asyncio client alike."""

import json
from dataclasses import dataclass, field

import grpc

_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where the services listen, host:port each. Empty: that part of the client is not usable."""

    router: str
    retriever: str = ""
    scheduler: str = ""


@dataclass(frozen=True, kw_only=True)
class Dial:
    """How to reach a service and who calls."""

    api_key: str = field(repr=False)
    tls: grpc.ChannelCredentials | None = None
    timeout_s: float = 300.0
    keepalive_s: float = 30.0
    max_message_bytes: int = 64 * 1024 * 1024

    def options(self) -> list[tuple[str, int | str]]:
        """Channel options: keepalive, and a retry of what was refused before an answer began."""
        service_config = {"methodConfig": [{"name": [{}], "retryPolicy": _RETRY}]}
        return [
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.service_config", json.dumps(service_config)),
        ]

    def metadata(self) -> list[tuple[str, str]]:
        """What every call carries."""
        return [("authorization", f"Bearer {self.api_key}")] if self.api_key else []


def required(target: str, *, part: str) -> str:
    """The address of a part of the system; a ValueError that says how to give it where it is unknown."""
    if not target:
        raise ValueError(f"the {part} is not known: connect(..., {part}='HOST:PORT')")
    return target
