"""The asynchronous shell: leases that run, what schedulers are told, accounts."""
