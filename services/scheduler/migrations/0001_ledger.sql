-- The ledger. One row for each lease that ended, one for each decision; nothing is ever changed or deleted by the
-- application, so its role may only read and add.
--
-- Isolation: row-level security, forced on the owner too. A transaction sees and adds the rows of the one tenant that
-- app.tenant_id names, and without it none at all. The consumer that fills the ledger for all tenants has no way around
-- this either: it opens one transaction for each tenant of a batch, under that tenant's id. So no role and no setting
-- exists that can see two tenants at once.
--
-- Exactly one row per lease: worker and scheduler may both record the end of a lease (the worker comes back after it was
-- given up), and Kafka may deliver either record again. The first one stays. A correction would supersede it as a row
-- of its own that names this one (kind = 'correction', corrects = lease_id, amounts as differences), never as an update:
-- what was once reported to a tenant stays explainable. There are no corrections yet.
--   downstack_owner  owns the tables; runs migrations
--   downstack_app    reads and adds rows of the tenant in app.tenant_id

CREATE SCHEMA ledger;

CREATE TABLE ledger.usage (
  lease_id                text             PRIMARY KEY CHECK (octet_length(lease_id) BETWEEN 1 AND 256),
  tenant_id               uuid             NOT NULL,
  request_id              text             NOT NULL,
  attempt                 bigint           NOT NULL,
  key_id                  text             NOT NULL,
  model                   text             NOT NULL,
  requested_model         text             NOT NULL,
  worker_id               text             NOT NULL,
  worker_epoch            text             NOT NULL,
  engine                  text             NOT NULL,
  -- Counts are NULL where nobody knows them, never 0.
  input_tokens            bigint           CHECK (input_tokens >= 0),
  cached_tokens           bigint           CHECK (cached_tokens >= 0),
  output_tokens           bigint           CHECK (output_tokens >= 0),
  reasoning_tokens        bigint           CHECK (reasoning_tokens >= 0),
  retrieved_tokens        bigint           CHECK (retrieved_tokens >= 0),
  delivered_tokens        bigint           CHECK (delivered_tokens >= 0),
  predicted_cached_tokens bigint           NOT NULL,
  -- In 1e-9 of the currency's unit, exact.
  cost_nano               bigint           NOT NULL,
  currency                text             NOT NULL,
  price_version           text             NOT NULL,
  finish                  text             NOT NULL,
  source                  text             NOT NULL,
  queue_ms                double precision,
  engine_queue_ms         double precision,
  prefill_ms              double precision,
  ttft_ms                 double precision,
  tpot_ms                 double precision,
  total_ms                double precision,
  prepare_ms              double precision,
  gpu_seconds             double precision,
  granted_at              timestamptz      NOT NULL,
  started_at              timestamptz,
  finished_at             timestamptz      NOT NULL,
  labels                  jsonb            NOT NULL DEFAULT '{}',
  recorded_at             timestamptz      NOT NULL DEFAULT now()
);

CREATE INDEX usage_newest ON ledger.usage (tenant_id, finished_at DESC, lease_id DESC);
CREATE INDEX usage_request ON ledger.usage (tenant_id, request_id);

CREATE TABLE ledger.decisions (
  tenant_id   uuid        NOT NULL,
  request_id  text        NOT NULL,
  attempt     bigint      NOT NULL,
  lease_id    text        NOT NULL,
  decided_at  timestamptz NOT NULL,
  -- A serialized downstack.types.v1.Decision.
  decision    bytea       NOT NULL,
  PRIMARY KEY (tenant_id, request_id, attempt, lease_id)
);

ALTER TABLE ledger.usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger.usage FORCE ROW LEVEL SECURITY;
ALTER TABLE ledger.decisions ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger.decisions FORCE ROW LEVEL SECURITY;

CREATE POLICY one_tenant ON ledger.usage
  USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid)
  WITH CHECK (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid);
CREATE POLICY one_tenant ON ledger.decisions
  USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid)
  WITH CHECK (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid);

GRANT USAGE ON SCHEMA ledger TO downstack_app;
GRANT SELECT, INSERT ON ledger.usage, ledger.decisions TO downstack_app;
