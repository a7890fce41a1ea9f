"""The asynchronous shell around the router's decisions."""
