"""A remote server that speaks vLLM's own gRPC contract, as an engine."""
