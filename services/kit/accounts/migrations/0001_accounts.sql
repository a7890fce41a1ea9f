-- Tenants and API keys.
--
-- No row-level security here, on purpose: a key is looked up before anybody knows whose it is. What protects these
-- tables is that no tenant's query reaches them: only the authenticator (by one key's public part) and AdminService read
-- them, and a row holds a keyed digest, never a secret. Who may do what:
--   downstack_owner  owns them; runs migrations
--   downstack_app    reads both, adds rows, and sets revoked_at; it can neither delete nor change anything else

CREATE SCHEMA accounts;

CREATE TABLE accounts.tenants (
  tenant_id  uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
  name       text        NOT NULL COLLATE "C" UNIQUE CHECK (name ~ '^[a-z0-9-]{1,64}$'),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts.api_keys (
  key_id     text        PRIMARY KEY CHECK (key_id ~ '^[a-z0-9]{8}$'),
  tenant_id  uuid        NOT NULL REFERENCES accounts.tenants,
  name       text        NOT NULL CHECK (octet_length(name) <= 128),
  principal  text        NOT NULL CHECK (octet_length(principal) BETWEEN 1 AND 128),
  groups     text[]      NOT NULL CHECK (cardinality(groups) <= 64),
  scopes     text[]      NOT NULL CHECK (cardinality(scopes) >= 1),
  digest     bytea       NOT NULL CHECK (octet_length(digest) = 32),
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  revoked_at timestamptz
);

CREATE INDEX api_keys_newest ON accounts.api_keys (tenant_id, created_at DESC, key_id DESC);

GRANT USAGE ON SCHEMA accounts TO downstack_app;
GRANT SELECT, INSERT ON accounts.tenants, accounts.api_keys TO downstack_app;
GRANT UPDATE (revoked_at) ON accounts.api_keys TO downstack_app;
