"""The bounds and times that placement keeps to."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound has a name; the settings carry the same names."""

    max_queued: int = 4096
    """Requests that wait for a placement, all together. At the bound the most urgent class takes others' places."""
    max_queued_standard: int = 4096
    """Requests of the standard class that wait for a placement."""
    max_queued_batch: int = 2048
    """Requests of the batch class that wait for a placement."""
    max_queued_per_tenant: int = 1024
    """Requests that wait for a placement, one tenant."""
    max_workers: int = 1024
    """Workers known at one time, lost ones included."""
    max_tenants: int = 100_000
    """Tenants whose service is remembered; those least served are forgotten first."""
    max_settled_leases: int = 100_000
    """Ended leases whose rows are awaited, to know what is spent; the oldest are then taken to be in the ledger."""
    max_ended_leases: int = 100_000
    """Ended leases remembered, so that late reports of them are understood."""
    max_predicted_blocks: int = 1_000_000
    """Predicted blocks in the index, all workers together."""
    max_blocks_per_worker: int = 4_000_000
    """Blocks that one worker may report resident."""
    max_pending_deltas: int = 1024
    """Deltas of one worker kept while its snapshot is awaited."""
    max_prompt_tokens: int = 4_194_304
    """Longest prompt that a request may state."""

    look_ahead: int = 2
    """Requests that a worker may hold beyond its batch."""
    prefix_ahead: int = 16
    """Further requests for a worker that holds more than half of their prompts."""
    prefill_ahead_ms: float = 1000.0
    """Prompts that a worker may hold beside the next one, in milliseconds of computing."""
    pace_tpot_ms: float = 60.0
    """Time for each further token that running answers are kept to, by giving their worker fewer prompts."""
    ageing_s: float = 10.0
    """Time without a placement that lifts a class that waits by one class."""
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of tenants that are not 1."""
    fair_quantum_tokens: float = 4096.0
    """Tokens that a tenant may be ahead of the one charged least, and still go first for its resident prefix."""
    fair_credit_tokens: float = 262_144.0
    """Tokens that a tenant may be behind those being served; what it is behind more, is forgotten."""
    locality_window: int = 8
    """Requests among which the longest resident prefix goes first; how often one may be passed over for it."""
    admit_ttft_ms_interactive: float | None = 900.0
    """Interactive requests that would have to wait, and have their first token later than this, are refused."""
    admit_ttft_ms_standard: float | None = None
    """The same of standard requests. None: they wait as long as their deadline allows."""
    max_wait_s: float = 300.0
    """Longest wait for a placement, whatever the caller's deadline."""
    no_worker_wait_s: float = 10.0
    """Wait for a worker of a model that has none."""
    settle_s: float = 1.0
    """Wait for the fleet to connect after a start, and for the cache of a worker that has just connected."""
    ticket_ttl_s: float = 30.0
    """Time in which a ticket must be used."""
    start_grace_s: float = 5.0
    """Time for a worker's report of a ticket used at the last moment."""
    lost_grace_s: float = 10.0
    """Time in which a lost worker may come back to its leases."""
    lease_max_s: float = 7200.0
    """Longest life of a lease."""
    forget_worker_s: float = 600.0
    """Time after which a lost worker is forgotten."""
    resync_retry_s: float = 5.0
    """Time after which a snapshot that did not come is asked for again."""
    predicted_life_s: float = 5.0
    """Life of a predicted block of a worker that reports its cache."""
    approximate_life_s: float = 120.0
    """Life of a predicted block of a worker that does not report its cache."""
    report_interval_s: float = 1.0
    """Time between two load reports at most; older ones widen the estimates."""
