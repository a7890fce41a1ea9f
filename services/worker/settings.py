"""The worker's settings."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.kit.models import BUILTIN_SIM
from services.kit.settings import Address, EventSettings, OptionalAddress, ServiceSettings

# Of an IPv6 address; they are not for names.
_BRACKETS = str.maketrans("", "", "[]")


class WorkerSettings(ServiceSettings, EventSettings):
    """DOWNSTACK_WORKER_*."""

    model_config = SettingsConfigDict(env_prefix="DOWNSTACK_WORKER_")

    listen: Address = "127.0.0.1:50054"
    """Where gRPC listens, HOST:PORT."""

    advertise: OptionalAddress = ""
    """Where callers reach this worker, HOST:PORT. Empty: the same as `listen`."""

    scheduler: str = Field(default="", pattern=r"^([^,\s]+:\d{1,5}(,[^,\s]+:\d{1,5})*)?$")
    """The schedulers to connect to, HOST:PORT[,HOST:PORT…]. Empty: the worker serves without one."""

    worker_id: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")
    """The worker's name across restarts. Empty: `wkr-` and the advertised address, which no other worker has."""

    engine: Literal["vllm", "sim", "remote"] = "sim"
    """The engine. `remote` is a server elsewhere that speaks vLLM's own gRPC contract."""

    task: Literal["generate", "embed"] = "generate"
    """What the model does. One that embeds has no KV cache and no leases, so that its worker has no scheduler."""

    max_texts: int = Field(default=1024, ge=256)
    """Embedding: the most texts at once, over all calls."""

    remote_target: OptionalAddress = ""
    """Remote engine: where the server is, HOST:PORT."""

    remote_wait_s: float = Field(default=60.0, ge=0)
    """Remote engine: how long a start waits for a server that does not answer or is not healthy yet."""

    remote_assertion: bool = False
    """Remote engine: whether calls carry this worker's assertion, which is for a server of Downstack's only."""

    vllm_contract: Literal["off", "service", "open"] = "off"
    """Whether the service `vllm.grpc.engine.VllmEngine` is served, for gateways that know no tickets.

    `service`: to whoever carries the assertion of a service, or of a caller with the scope `generate`. `open`: to
    everybody who reaches the port.
    """

    vllm_contract_tenant: str = Field(default="", pattern=r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?$")
    """The UUID of the tenant of requests by that service whose caller names none. `open` needs it."""

    model: str = Field(default="sim-small", min_length=1)
    """The model's name, as callers and the router say it."""

    model_path: str = BUILTIN_SIM
    """The model's folder; `package:NAME/PATH` in a Python package, `builtin:sim` that of the simulated engine."""

    adapters: str = Field(default="", pattern=r"^([A-Za-z0-9._-]{1,64}=[^,=]+(,[A-Za-z0-9._-]{1,64}=[^,=]+)*)?$")
    """The LoRA adapters to start with, NAME=FOLDER[,NAME=FOLDER…]; requests name them MODEL:NAME."""

    adapter_folder: Path | None = None
    """Below this folder LoadAdapter finds adapters. Unset: only those of `adapters` are there."""

    max_adapters: int = Field(default=0, ge=0, le=64)
    """The most adapters at once. 0: none; vLLM then does without what they cost."""

    max_adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 16
    """The highest rank of an adapter. vLLM keeps room for it with each of `max_adapters`."""

    device_kind: str = "cpu"
    """The kind of machine, such as `cpu` or `h100`; workers of one kind share their rates."""

    price_per_hour_nano: int = Field(default=0, ge=0)
    """What an hour of this worker costs, in 1e-9 of the currency's unit."""

    context_tokens: int = Field(default=2048, ge=64)
    """The longest prompt plus answer."""

    block_size: int = Field(default=32, ge=8, le=256)
    """Tokens in a block of the KV cache. On a CPU a multiple of 32."""

    max_num_seqs: int = Field(default=8, ge=1, le=4096)
    """The most requests in one batch."""

    max_num_batched_tokens: int = Field(default=512, ge=16)
    """The most tokens in one engine step."""

    kv_cache_gib: int = Field(default=1, ge=1)
    """vLLM on a CPU: the size of the KV cache in GiB."""

    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """vLLM on a GPU: the share of its memory that is used."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """vLLM: the numbers to compute with. `auto`: the model's own, and float32 on a CPU without bfloat16."""

    load_format: Literal["auto", "dummy"] = "auto"
    """vLLM: where weights come from. `dummy`: random ones, which take as long as real ones; for measurements."""

    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """vLLM: how many GPUs of this machine share the model."""

    enforce_eager: bool = True
    """vLLM: do not compile the model. Starts faster, runs a little slower."""

    cpu_threads: int = Field(default=0, ge=0)
    """vLLM on a CPU: the threads that compute. 0: one less than there are cores."""

    kv_blocks: int = Field(default=0, ge=0)
    """The size of the KV cache in blocks. 0: what the memory settings give; 2048 for the simulated engine."""

    calibration: Literal["short", "off"] = "short"
    """vLLM: whether a start measures for up to three seconds how fast the engine is, before the worker serves."""

    prefill_base_ms: float = Field(default=5.0, ge=0)
    """The declared fixed time of a prefill. The simulated engine takes it, vLLM's is learned."""

    prefill_ms_per_token: float = Field(default=0.1, ge=0)
    """The declared time of one uncached prompt token."""

    decode_base_ms: float = Field(default=10.0, ge=0)
    """The declared time of a decode step with one request."""

    decode_ms_per_request: float = Field(default=0.5, ge=0)
    """What each further request adds to a decode step."""

    prefill_ms_per_pair: float = Field(default=0.0, ge=0)
    """The declared time for each pair of an uncached prompt token and a token before it."""

    decode_ms_per_context_token: float = Field(default=0.0, ge=0)
    """What each token of context, summed over the batch, adds to a decode step."""

    profile: str = ""
    """Simulated engine: a packaged profile or the path of one, for its sizes, rates and price where nothing is set."""

    sim_startup_s: float = Field(default=0.0, ge=0)
    """Simulated engine: how long its start takes."""

    sim_mean_output_tokens: int = Field(default=64, ge=2)
    """Simulated engine: the mean length of an answer that nothing else bounds."""

    sim_crash_after_s: float = Field(default=0.0, ge=0)
    """Simulated engine: when it dies after each start, to try what follows. 0: never."""

    sim_hang_after_s: float = Field(default=0.0, ge=0)
    """Simulated engine: when it stops making steps after each start. 0: never."""

    sim_slow_factor: float = Field(default=1.0, gt=0)
    """Simulated engine: its steps take so many times as long as the declared rates say."""

    flush_ms: float = Field(default=20.0, ge=0, le=1000)
    """The least time between two frames of a stream after its first token; more tokens in that time share a frame."""

    longest_flush_ms: float = Field(default=100.0, ge=0, le=1000)
    """What `flush_ms` grows to while this process has more to do than it can: fewer frames with more tokens."""

    stall_s: float = Field(default=10.0, gt=0)
    """How long a caller may leave a frame unread before its stream is ended with CLIENT_TOO_SLOW."""

    max_pending_tokens: int = Field(default=4096, ge=16)
    """The most tokens that wait for one caller that is busy reading."""

    progress_s: float = Field(default=3.0, ge=2)
    """How long an engine may go without a sign of life before it counts as lost and is started anew."""

    longest_step_s: float = Field(default=300.0, ge=1)
    """How long an engine with work may go without a step, whatever it computes, before it counts as lost."""

    engine_start_s: float = Field(default=1800.0, gt=0)
    """The longest start of an engine."""

    longest_restart_pause_s: float = Field(default=30.0, ge=0.5)
    """The longest pause before a lost engine is started anew; the first takes 0.5 s, and they double."""

    max_restarts: int = Field(default=5, ge=1)
    """The most starts of another engine that may fail in a row before the process ends."""

    max_leases: int = Field(default=1024, ge=1)
    """The most leases at once. The scheduler places fewer; this is the last bound."""

    max_remembered: int = Field(default=100_000, ge=1)
    """The most used tickets that are remembered until they expire, and the most ends that await a scheduler."""

    report_interval_s: float = Field(default=1.0, gt=0, le=10)
    """The longest time between two load reports."""

    @property
    def endpoint(self) -> str:
        """Where callers reach this worker."""
        return self.advertise or self.listen

    @property
    def schedulers(self) -> list[str]:
        """Each scheduler's address."""
        return [target for target in self.scheduler.split(",") if target]

    @property
    def first_adapters(self) -> list[tuple[str, Path]]:
        """Name and folder of each adapter to start with."""
        pairs = [entry.split("=") for entry in self.adapters.split(",") if entry]
        return [(name, Path(folder).expanduser()) for name, folder in pairs]

    @property
    def name(self) -> str:
        """The worker's id."""
        return self.worker_id or f"wkr-{self.endpoint.translate(_BRACKETS)}"

    @model_validator(mode="after")
    def _check_combinations(self) -> "WorkerSettings":
        if self.engine == "remote" and not self.remote_target:
            raise ValueError("remote_target: is required by the engine `remote`")
        if self.profile and self.engine != "sim":
            raise ValueError("profile: is of the engine `sim` only")
        if self.vllm_contract == "open" and not self.vllm_contract_tenant:
            raise ValueError("vllm_contract_tenant: is required where `vllm_contract` is `open`")
        if self.task == "embed" and (self.engine == "remote" or self.schedulers or self.max_adapters):
            raise ValueError("task: `embed` is for the engines `vllm` and `sim`, without `scheduler` and adapters")
        if len(self.first_adapters) > self.max_adapters:
            raise ValueError(f"max_adapters: must be at least {len(self.first_adapters)}, for those of `adapters`")
        if self.endpoint.endswith(":0"):
            raise ValueError("advertise: is required where `listen` takes a free port")
        return self
