"""The simulated engine: the structure of a paged, continuously batching engine, without a model."""
