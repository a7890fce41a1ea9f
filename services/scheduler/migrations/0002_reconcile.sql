-- What the scheduler needs to close a lease that a crash left without a row: what the lease was granted for, and how
-- long its decision has been in the ledger. Rights and isolation are those of the tables.

ALTER TABLE ledger.decisions
  -- A serialized downstack.scheduler.v1.LeaseGrant without its cache_salt. NULL: the decision came without one, and its
  -- lease is not compared.
  ADD COLUMN lease_grant bytea,
  -- By the database's clock. Waiting counts from here and not from decided_at: after a long absence of Kafka, a decision
  -- and the worker's record of its lease arrive late together.
  ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT now();

CREATE INDEX decisions_recorded ON ledger.decisions (tenant_id, recorded_at, lease_id) WHERE lease_grant IS NOT NULL;
