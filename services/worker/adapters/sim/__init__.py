"""The simulated engine in real time."""
