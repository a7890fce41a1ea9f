"""vLLM's own gRPC contract, served: for gateways that know no tickets."""
