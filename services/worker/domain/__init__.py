"""The decisions of the worker as plain code: leases, KV mirror, limits, rates, and the simulated engine."""
