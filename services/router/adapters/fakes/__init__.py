"""Scripted stand-ins for what the router talks to, as real gRPC services."""
