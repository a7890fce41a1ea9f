"""What the worker counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

LEASES = Counter("downstack_worker_leases", "Leases that ended.", ("finish_reason",))
TOKENS = Counter("downstack_worker_tokens", "Tokens of ended leases.", ("kind",))
FRAMES = Counter("downstack_worker_frames", "Delta frames that were sent.")
FRAME_INTERVAL = Gauge("downstack_worker_frame_interval_seconds", "The least time between two frames of a stream.")
TTFT = Histogram(
    "downstack_worker_ttft_seconds",
    "From the receipt of a lease to its first token.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
EMBEDDED = Counter("downstack_worker_embedded", "What was embedded: texts, and their tokens.", ("kind",))
EMBED = Histogram(
    "downstack_worker_embed_seconds",
    "One call of Embed.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
SLOW_READERS = Counter("downstack_worker_slow_readers", "Streams that were ended because nobody read them.")
UNRECORDED = Counter("downstack_worker_usage_retries", "Usage records that the outbox did not take at once.")
RUNNING = Gauge("downstack_worker_running_requests", "Requests in the engine's batch.")
WAITING = Gauge("downstack_worker_waiting_requests", "Requests in the engine's queue.")
KV_USAGE = Gauge("downstack_worker_kv_usage", "The used share of the KV cache.")
KV_RESIDENT = Gauge("downstack_worker_kv_blocks_resident", "Blocks in the mirror of the KV cache.")
ADAPTERS = Gauge("downstack_worker_adapters", "Adapters that the engine holds, withdrawn ones included.")
ENGINES_LOST = Counter("downstack_worker_engines_lost", "Engines that died or hung.", ("why",))
RESTARTS = Counter("downstack_worker_engine_restarts", "Starts of another engine in place of a lost one.", ("outcome",))
LINKS_UP = Gauge("downstack_worker_scheduler_links", "Schedulers that this worker is connected to.")
DELTAS_DROPPED = Counter("downstack_worker_kv_deltas_dropped", "KV deltas that a slow scheduler gets as a snapshot.")
