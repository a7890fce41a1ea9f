"""Everything of the router that touches the world."""
