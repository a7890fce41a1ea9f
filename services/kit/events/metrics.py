"""What the event path tells Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

OUTBOX_DEPTH = Gauge("downstack_outbox_events", "Events that are durable here and not yet in Kafka.")
OUTBOX_BYTES = Gauge("downstack_outbox_bytes", "Bytes of these events.")
OUTBOX_AGE = Gauge("downstack_outbox_oldest_age_seconds", "Age of the oldest of these events.")
OUTBOX_REFUSALS = Counter("downstack_outbox_refusals", "Times that the outbox's bound refused an event or new work.")
OUTBOX_COMMIT = Histogram(
    "downstack_outbox_commit_seconds",
    "Time of one durable commit of a group of events.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
RELAY_SHIPPED = Counter("downstack_relay_shipped", "Events that Kafka acknowledged.", ("topic",))
RELAY_REBUILDS = Counter("downstack_relay_rebuilds", "Producers that were given up, by the reason.", ("fault",))
CONSUMER_EVENTS = Counter("downstack_consumer_events", "Events that were handled.", ("group", "topic"))
CONSUMER_DEAD = Counter("downstack_consumer_dead_letters", "Events put aside.", ("group", "topic", "error"))
CONSUMER_RETRIES = Counter("downstack_consumer_retries", "Batches that are to be tried again.", ("group", "fault"))
CONSUMER_REBUILDS = Counter("downstack_consumer_rebuilds", "Consumers that were given up.", ("group", "fault"))
CONSUMER_LAG = Gauge("downstack_consumer_lag_events", "Events behind the end of the topic.", ("group", "topic"))
