"""Where the retriever touches the world: gRPC, PostgreSQL, the embedding model, the outbox."""
