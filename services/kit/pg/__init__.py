"""PostgreSQL: connections that give up in time, transactions that carry the caller, and migrations."""
