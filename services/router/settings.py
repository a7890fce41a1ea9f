"""Settings of the router; each is DOWNSTACK_ROUTER_<NAME> in the environment."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import (
    AccountSettings,
    Addresses,
    EventSettings,
    OptionalAddress,
    PostgresSettings,
    ServiceSettings,
)


class RouterSettings(ServiceSettings, PostgresSettings, EventSettings, AccountSettings):
    """What the router can be told."""

    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_ROUTER_")

    scheduler: Addresses
    """Where the schedulers listen, HOST:PORT[,HOST:PORT…]; the same names in every router."""

    scheduler_spread: int = Field(default=1, ge=1, le=64)
    """Schedulers that take turns with the requests for a model. One keeps their order best; more decide more."""

    scheduler_patience_s: float = Field(default=10.0, ge=0, le=300)
    """Seconds that a request waits for a scheduler while none can be reached."""

    retriever: OptionalAddress = ""
    """Where the retriever listens, HOST:PORT. Empty: requests with retrieval are refused."""

    models: dict[str, str] = Field(min_length=1)
    """Model names and their folders, as JSON: {"sim-small": "builtin:sim"}. The workers load the same folders."""

    max_concurrent_requests: int = Field(default=1024, ge=1)
    """Requests in flight before new ones are refused with OVERLOADED."""

    retrieval_budget_s: float = Field(default=2.0, gt=0, le=60)
    """Seconds that retrieval may take where the request names no budget."""

    release_timeout_s: float = Field(default=5.0, gt=0, le=60)
    """Seconds to wait for the scheduler to take a lease back; after that the lease expires by itself."""

    fleet_interval_s: float = Field(default=0.5, ge=0.1, le=60)
    """The least time between two views of the fleet."""

    worker_channels_max: int = Field(default=1024, ge=1)
    """Connections to workers that are kept open."""

    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    """Threads that tokenize long prompts."""

    tokenizer_offload_chars: int = Field(default=8192, ge=0)
    """The length from which on a prompt is tokenized by those threads instead of on the event loop."""
