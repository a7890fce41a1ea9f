"""What touches the world: gRPC, Kafka, PostgreSQL, and the fakes beside them."""
