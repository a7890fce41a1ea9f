"""Placement policies, one a file; the registry names them."""
