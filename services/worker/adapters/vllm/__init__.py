"""vLLM, and all that depends on its internals."""
