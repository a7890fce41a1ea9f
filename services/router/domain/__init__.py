"""What the router decides, as plain code."""
