"""Replay of traces: the scheduler's own policy code on a simulated fleet, in virtual time."""
