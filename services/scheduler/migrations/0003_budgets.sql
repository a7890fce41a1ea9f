-- What is spent by day, kept with the ledger's rows, and the budgets that limit it.
--
-- ledger.spend is the sum of ledger.usage by tenant, UTC day of the row's end, key, model and currency. A trigger keeps
-- it in the transaction that adds the rows, whoever adds them: it cannot differ from them. Nobody else can write it: the
-- trigger's function acts as the owner, and row-level security holds for the owner too. A statement counts all its rows
-- at once, in the order of the sums, so that two of them never wait for each other.
--
-- No row-level security on the budgets, on purpose: a scheduler must know all of them to keep to them, before it knows
-- whose request comes next. They hold what an operator allowed, not what a tenant did. What protects them is that no
-- tenant's query reaches them: LedgerService answers a tenant with its own.
--   downstack_owner  owns the tables; runs migrations
--   downstack_app    reads the sums of the tenant in app.tenant_id; reads, adds, changes and removes budgets

CREATE TABLE ledger.spend (
  tenant_id uuid    NOT NULL,
  day       date    NOT NULL,
  key_id    text    NOT NULL,
  model     text    NOT NULL,
  currency  text    NOT NULL,
  -- In 1e-9 of the currency's unit, exact; a sum of many rows may pass 64 bits.
  cost_nano numeric NOT NULL,
  rows      bigint  NOT NULL,
  PRIMARY KEY (tenant_id, day, key_id, model, currency)
);

-- The owner sees the rows of all tenants for the length of this transaction only.
ALTER TABLE ledger.usage NO FORCE ROW LEVEL SECURITY;
INSERT INTO ledger.spend (tenant_id, day, key_id, model, currency, cost_nano, rows)
SELECT tenant_id, (finished_at AT TIME ZONE 'UTC')::date, key_id, model, currency, sum(cost_nano), count(*)
  FROM ledger.usage GROUP BY 1, 2, 3, 4, 5;
ALTER TABLE ledger.usage FORCE ROW LEVEL SECURITY;

ALTER TABLE ledger.spend ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger.spend FORCE ROW LEVEL SECURITY;
CREATE POLICY one_tenant ON ledger.spend
  USING (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid)
  WITH CHECK (tenant_id = NULLIF(current_setting('app.tenant_id', true), '')::uuid);

CREATE FUNCTION ledger.count_spend() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO ledger.spend AS kept (tenant_id, day, key_id, model, currency, cost_nano, rows)
  SELECT tenant_id, (finished_at AT TIME ZONE 'UTC')::date, key_id, model, currency, sum(cost_nano), count(*)
    FROM added GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
  ON CONFLICT (tenant_id, day, key_id, model, currency)
  DO UPDATE SET cost_nano = kept.cost_nano + excluded.cost_nano, rows = kept.rows + excluded.rows;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION ledger.count_spend() FROM PUBLIC;
CREATE TRIGGER count_spend AFTER INSERT ON ledger.usage
  REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger.count_spend();

CREATE TABLE ledger.budgets (
  tenant_id  uuid        NOT NULL,
  -- Empty: all keys, all models.
  key_id     text        NOT NULL CHECK (octet_length(key_id) <= 256),
  model      text        NOT NULL CHECK (octet_length(model) <= 256),
  period     text        NOT NULL CHECK (period IN ('day', 'month')),
  soft       boolean     NOT NULL,
  limit_nano bigint      NOT NULL CHECK (limit_nano >= 0),
  currency   text        NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  set_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, key_id, model, period, soft)
);

-- One row: the number of the last change of the budgets. Schedulers look at it often, and at the budgets when it has
-- changed; who changes budgets changes it first, so changes come one after another.
CREATE TABLE ledger.budget_changes (
  single   boolean PRIMARY KEY DEFAULT true CHECK (single),
  revision bigint  NOT NULL
);
INSERT INTO ledger.budget_changes (revision) VALUES (1);

GRANT SELECT ON ledger.spend TO downstack_app;
GRANT SELECT, INSERT, DELETE ON ledger.budgets TO downstack_app;
GRANT UPDATE (limit_nano, currency, set_at) ON ledger.budgets TO downstack_app;
GRANT SELECT, UPDATE (revision) ON ledger.budget_changes TO downstack_app;
