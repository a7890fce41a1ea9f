"""The scheduler's settings."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import SettingsConfigDict

from services.kit.settings import AccountSettings, EventSettings, PostgresSettings, ServiceSettings
from services.scheduler.domain.demand import DemandLimits
from services.scheduler.domain.lease import MAX_PRICE
from services.scheduler.domain.limits import Limits

_L = Limits()
_D = DemandLimits()


class TokenPrice(BaseModel):
    """What a token costs, by class, in 1e-9 of the currency's unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_nano: int = Field(ge=0, le=MAX_PRICE)
    cached_nano: int = Field(ge=0, le=MAX_PRICE)
    output_nano: int = Field(ge=0, le=MAX_PRICE)


class SchedulerSettings(ServiceSettings, PostgresSettings, EventSettings, AccountSettings):
    """Environment: DOWNSTACK_SCHEDULER_*."""

    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_SCHEDULER_")

    scheduler_id: str = Field(default="", max_length=64)
    """Names this scheduler in decisions and events. Empty: a new name at each start."""

    policy: str = "worth"
    """How a worker is chosen. Policies of other systems are there to compare with; docs/placement.md names all."""

    weights: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    """Weights of policies that differ from their defaults, as JSON: {"POLICY": {"WEIGHT": 1.0}}."""

    value: float = Field(default=1.0, ge=0)
    """What a perfect answer is worth where the request does not say, in currency units."""

    seed: int | None = None
    """Seed of the choice between equals. None: different at each start."""

    prices: Mapping[str, TokenPrice] = Field(default_factory=dict)
    """Prices by model, as JSON: {"MODEL": {"input_nano": 1, "cached_nano": 1, "output_nano": 1}}."""

    default_price: TokenPrice = TokenPrice(input_nano=150, cached_nano=75, output_nano=600)
    """The price of models that `prices` does not name."""

    price_version: str = Field(default="1", min_length=1, max_length=64)
    """The version of the price list, kept with every cost."""

    currency: str = Field(default="USD", pattern="^[A-Z]{3}$")
    """The currency of all prices, ISO 4217."""

    tick_s: float = Field(default=0.1, gt=0, le=1)
    """Time between two looks at what is due: deadlines, expired tickets, lost workers."""

    max_orders: int = Field(default=1024, ge=16)
    """Messages that wait for one worker; one that does not read them loses its connection."""

    max_queued: int = Field(default=_L.max_queued, ge=1)
    """Requests that wait, all together. At the bound a more urgent class takes others' places; then OVERLOADED."""

    max_queued_standard: int = Field(default=_L.max_queued_standard, ge=1)
    """Requests of the standard class that wait."""

    max_queued_batch: int = Field(default=_L.max_queued_batch, ge=1)
    """Requests of the batch class that wait."""

    max_queued_per_tenant: int = Field(default=_L.max_queued_per_tenant, ge=1)
    """Requests of one tenant that wait. More are refused with TENANT_CONCURRENCY."""

    max_workers: int = Field(default=_L.max_workers, ge=1, le=10_000)
    """Workers known at one time, lost ones included."""

    max_tenants: int = Field(default=_L.max_tenants, ge=1)
    """Tenants whose service is remembered."""

    max_settled_leases: int = Field(default=_L.max_settled_leases, ge=1)
    """Ended leases whose rows are awaited, to know what is spent of budgets."""

    max_budgets: int = Field(default=10_000, ge=1, le=100_000)
    """Budgets of all tenants together; a further one is refused with QUOTA_EXCEEDED."""

    budget_refresh_s: float = Field(default=1.0, ge=0.05, le=60)
    """Time between two looks at the budgets and what is spent of them."""

    budget_tenants_per_refresh: int = Field(default=100, ge=1)
    """Tenants whose spending is read at one look."""

    max_ended_leases: int = Field(default=_L.max_ended_leases, ge=1)
    """Ended leases remembered, so that late reports of them are understood."""

    max_predicted_blocks: int = Field(default=_L.max_predicted_blocks, ge=0)
    """Predicted blocks in the index, all workers together."""

    max_blocks_per_worker: int = Field(default=_L.max_blocks_per_worker, ge=1)
    """Blocks that one worker may report resident."""

    max_pending_deltas: int = Field(default=_L.max_pending_deltas, ge=1)
    """Deltas of one worker kept while its snapshot is awaited."""

    max_prompt_tokens: int = Field(default=_L.max_prompt_tokens, ge=1, le=_L.max_prompt_tokens)
    """Longest prompt that a request may state."""

    look_ahead: int = Field(default=_L.look_ahead, ge=0, le=1024)
    """Requests that a worker may hold beyond its batch."""

    prefix_ahead: int = Field(default=_L.prefix_ahead, ge=0, le=1024)
    """Further requests for a worker that holds more than half of their prompts."""

    prefill_ahead_ms: float = Field(default=_L.prefill_ahead_ms, ge=0)
    """Prompts that a worker may hold before it is given more, in milliseconds of computing."""

    pace_tpot_ms: float = Field(default=_L.pace_tpot_ms, gt=0)
    """Time for each further token that running answers are kept to, by giving their worker fewer prompts."""

    ageing_s: float = Field(default=_L.ageing_s, gt=0)
    """Time without a placement that lifts a class that waits by one class."""

    tenant_weights: Mapping[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """Shares of tenants that are not 1, as JSON: {"TENANT": 2.0}."""

    fair_quantum_tokens: float = Field(default=_L.fair_quantum_tokens, ge=0)
    """Tokens that a tenant may be ahead of the one charged least, and still go first for its resident prefix."""

    fair_credit_tokens: float = Field(default=_L.fair_credit_tokens, ge=0)
    """Tokens that a tenant may be behind those being served; what it is behind more, is forgotten."""

    locality_window: int = Field(default=_L.locality_window, ge=1, le=64)
    """Requests among which the longest resident prefix goes first; how often one may be passed over for it."""

    admit_ttft_ms_interactive: float | None = Field(default=_L.admit_ttft_ms_interactive, gt=0)
    """Interactive requests that would have to wait, and have their first token later than this, are refused."""

    admit_ttft_ms_standard: float | None = Field(default=_L.admit_ttft_ms_standard, gt=0)
    """The same of standard requests. None: they wait as long as their deadline allows."""

    max_wait_s: float = Field(default=_L.max_wait_s, gt=0)
    """Longest wait for a placement, whatever the caller's deadline."""

    no_worker_wait_s: float = Field(default=_L.no_worker_wait_s, ge=0)
    """Wait for a worker of a model that has none, such as one that restarts."""

    settle_s: float = Field(default=_L.settle_s, ge=0, le=60)
    """Wait for the fleet to connect after a start, and for the cache of a worker that has just connected."""

    ticket_ttl_s: float = Field(default=_L.ticket_ttl_s, gt=0, le=3600)
    """Time in which a ticket must be used."""

    start_grace_s: float = Field(default=_L.start_grace_s, ge=0)
    """Time for a worker's report of a ticket used at the last moment."""

    lost_grace_s: float = Field(default=_L.lost_grace_s, ge=0)
    """Time in which a lost worker may come back to its leases."""

    lease_max_s: float = Field(default=_L.lease_max_s, gt=0)
    """Longest life of a lease."""

    forget_worker_s: float = Field(default=_L.forget_worker_s, ge=0)
    """Time after which a lost worker is forgotten."""

    resync_retry_s: float = Field(default=_L.resync_retry_s, gt=0)
    """Time after which a snapshot that did not come is asked for again."""

    predicted_life_s: float = Field(default=_L.predicted_life_s, ge=0)
    """Life of a predicted block of a worker that reports its cache."""

    approximate_life_s: float = Field(default=_L.approximate_life_s, ge=0)
    """Life of a predicted block of a worker that does not report its cache."""

    report_interval_s: float = Field(default=_L.report_interval_s, ge=0.1, le=60)
    """Time between two load reports of a worker at most."""

    demand_window_s: float = Field(default=_D.window_s, gt=0)
    """The time over which demand is averaged, for `replicas_wanted`."""

    demand_utilization: float = Field(default=_D.utilization, gt=0, le=1)
    """The share of a worker that should be busy, for `replicas_wanted`."""

    demand_drain_s: float = Field(default=_D.drain_s, gt=0)
    """The time in which what waits should be gone, for `replicas_wanted`."""

    reconcile_interval_s: float = Field(default=60.0, gt=0)
    """Time between two comparisons of the ledger's decisions with its rows."""

    reconcile_after_s: float = Field(default=300.0, gt=0)
    """Time for the record of a lease that could no longer begin to reach the ledger. Then it is closed as unused."""

    reconcile_lookback_s: float = Field(default=604_800.0, gt=0)
    """How far back the first comparison after a start looks."""

    reconcile_max_pending: int = Field(default=1000, ge=1)
    """Leases closed by comparison whose rows are awaited; no more are closed beyond it."""

    def demand_limits(self) -> DemandLimits:
        """How demand is measured."""
        return DemandLimits(
            window_s=self.demand_window_s, utilization=self.demand_utilization, drain_s=self.demand_drain_s
        )

    def limits(self) -> Limits:
        """The bounds that the brain keeps to."""
        return Limits(**{name: getattr(self, name) for name in Limits.__dataclass_fields__})
