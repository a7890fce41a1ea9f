-- Collections, their grants, documents and passages.
--
-- Three lines hold each tenant and each caller apart, and each holds alone:
--   1. row-level security, forced on every table, from the transaction's app.tenant_id, app.principal and app.groups;
--   2. the tenant named in every statement of the service;
--   3. one partition of the passages per tenant.
-- Who may do what:
--   downstack_owner  owns everything; the policies hold it too, but for reading passages inside `search_text`
--   downstack_app    the service: no rights on partitions, no DDL but through `ensure_partition`

CREATE SCHEMA retrieval;

-- Who asks. Bodies in SQL-standard form are bound at creation: no search_path can change what they mean.

CREATE FUNCTION retrieval.current_tenant() RETURNS uuid
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN NULLIF(current_setting('app.tenant_id', true), '')::uuid;

CREATE FUNCTION retrieval.current_principal() RETURNS text
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN NULLIF(current_setting('app.principal', true), '');

CREATE FUNCTION retrieval.current_grantees() RETURNS text[]
  LANGUAGE sql STABLE PARALLEL SAFE
  RETURN ARRAY(SELECT 'group:' || name FROM unnest(NULLIF(current_setting('app.groups', true), '')::text[]) AS name)
    || ('principal:' || retrieval.current_principal());

-- Collections and grants ---------------------------------------------------------------------------------------------

CREATE TABLE retrieval.collections (
  tenant_id       uuid        NOT NULL,
  collection_id   bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
  name            text        NOT NULL COLLATE "C" CHECK (name ~ '^[a-z0-9_-]{1,64}$'),
  owner           text        NOT NULL CHECK (owner <> ''),
  private         boolean     NOT NULL,
  embedding_model text        NOT NULL,
  dimensions      integer     NOT NULL CHECK (dimensions > 0),
  -- Totals of what is in it, kept by the transactions that change it. `lexemes` sums the distinct words of each passage.
  documents       bigint      NOT NULL DEFAULT 0 CHECK (documents >= 0),
  chunks          bigint      NOT NULL DEFAULT 0 CHECK (chunks >= 0),
  lexemes         bigint      NOT NULL DEFAULT 0 CHECK (lexemes >= 0),
  created_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, collection_id),
  UNIQUE (tenant_id, name)
);

CREATE TABLE retrieval.grants (
  tenant_id     uuid     NOT NULL,
  collection_id bigint   NOT NULL,
  grantee       text     NOT NULL COLLATE "C" CHECK (grantee ~ '^(principal|group):.'),
  level         smallint NOT NULL CHECK (level IN (1, 2)),  -- read, write
  PRIMARY KEY (tenant_id, collection_id, grantee),
  FOREIGN KEY (tenant_id, collection_id) REFERENCES retrieval.collections ON DELETE CASCADE
);

CREATE INDEX grants_of_grantee ON retrieval.grants (tenant_id, grantee);

CREATE FUNCTION retrieval.granted_collections(least_level integer) RETURNS SETOF bigint
  LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT g.collection_id FROM retrieval.grants AS g
   WHERE g.tenant_id = retrieval.current_tenant()
     AND g.grantee = ANY (retrieval.current_grantees())
     AND g.level >= least_level;
END;

CREATE FUNCTION retrieval.writable_collections() RETURNS SETOF bigint
  LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT c.collection_id FROM retrieval.collections AS c
   WHERE c.tenant_id = retrieval.current_tenant()
     AND (c.owner = retrieval.current_principal()
          OR c.collection_id IN (SELECT retrieval.granted_collections(2)));
END;

ALTER TABLE retrieval.collections ENABLE ROW LEVEL SECURITY;
ALTER TABLE retrieval.collections FORCE ROW LEVEL SECURITY;
CREATE POLICY readable ON retrieval.collections FOR SELECT USING (
  tenant_id = (SELECT retrieval.current_tenant())
  AND (NOT private
       OR owner = (SELECT retrieval.current_principal())
       OR collection_id IN (SELECT retrieval.granted_collections(1))));
CREATE POLICY created_by_owner ON retrieval.collections FOR INSERT WITH CHECK (
  tenant_id = (SELECT retrieval.current_tenant()) AND owner = (SELECT retrieval.current_principal()));
CREATE POLICY counted_by_writers ON retrieval.collections FOR UPDATE USING (
  tenant_id = (SELECT retrieval.current_tenant())
  AND (owner = (SELECT retrieval.current_principal()) OR collection_id IN (SELECT retrieval.granted_collections(2))));
CREATE POLICY deleted_by_writers ON retrieval.collections FOR DELETE USING (
  tenant_id = (SELECT retrieval.current_tenant())
  AND (owner = (SELECT retrieval.current_principal()) OR collection_id IN (SELECT retrieval.granted_collections(2))));

-- Reading grants is what the policies above rest on, so theirs may not rest on collections: the tenant alone decides.
ALTER TABLE retrieval.grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE retrieval.grants FORCE ROW LEVEL SECURITY;
CREATE POLICY readable ON retrieval.grants FOR SELECT USING (tenant_id = (SELECT retrieval.current_tenant()));
CREATE POLICY given_by_writers ON retrieval.grants FOR INSERT WITH CHECK (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
CREATE POLICY changed_by_writers ON retrieval.grants FOR UPDATE USING (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
CREATE POLICY revoked_by_writers ON retrieval.grants FOR DELETE USING (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));

-- Documents ----------------------------------------------------------------------------------------------------------

CREATE TABLE retrieval.documents (
  tenant_id     uuid        NOT NULL,
  document_key  bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
  collection_id bigint      NOT NULL,
  document_id   text        NOT NULL COLLATE "C" CHECK (octet_length(document_id) BETWEEN 1 AND 512),
  version       integer     NOT NULL CHECK (version >= 1),
  -- Of everything that the passages and embeddings are made from, the rules included.
  content_hash  bytea       NOT NULL CHECK (octet_length(content_hash) = 32),
  title         text        NOT NULL,
  uri           text        NOT NULL,
  media_type    text        NOT NULL,
  content       text        NOT NULL,
  metadata      jsonb       NOT NULL,
  chunks        integer     NOT NULL CHECK (chunks >= 0),
  created_at    timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, document_key),
  UNIQUE (tenant_id, collection_id, document_id),
  FOREIGN KEY (tenant_id, collection_id) REFERENCES retrieval.collections ON DELETE CASCADE
) WITH (toast_tuple_target = 256);  -- filters on metadata read rows without their content

ALTER TABLE retrieval.documents ENABLE ROW LEVEL SECURITY;
ALTER TABLE retrieval.documents FORCE ROW LEVEL SECURITY;
-- The subquery sees collections through their own policy: a document is readable where its collection is.
CREATE POLICY readable ON retrieval.documents FOR SELECT USING (
  tenant_id = (SELECT retrieval.current_tenant())
  AND collection_id IN (SELECT c.collection_id FROM retrieval.collections AS c));
CREATE POLICY stored_by_writers ON retrieval.documents FOR INSERT WITH CHECK (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
CREATE POLICY changed_by_writers ON retrieval.documents FOR UPDATE USING (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
CREATE POLICY deleted_by_writers ON retrieval.documents FOR DELETE USING (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));

-- Passages -----------------------------------------------------------------------------------------------------------
-- One partition per tenant, each with its own HNSW graph: a filter over one graph for all tenants loses recall without
-- a word, and a tenant that leaves is a partition that is dropped. No foreign key to documents: it would make every new
-- partition lock that table; the transactions that delete documents delete their passages.

CREATE SEQUENCE retrieval.chunk_ids;

CREATE TABLE retrieval.chunks (
  tenant_id     uuid         NOT NULL,
  chunk_id      bigint       NOT NULL DEFAULT nextval('retrieval.chunk_ids'),
  collection_id bigint       NOT NULL,
  document_key  bigint       NOT NULL,
  version       integer      NOT NULL,
  ordinal       integer      NOT NULL,
  start_char    integer      NOT NULL,
  end_char      integer      NOT NULL,
  heading       text         NOT NULL,
  body          text         NOT NULL,
  embedding     halfvec(384) NOT NULL,
  lexemes       tsvector     NOT NULL
    GENERATED ALWAYS AS (to_tsvector('pg_catalog.english', heading || E'\n' || body)) STORED,
  PRIMARY KEY (tenant_id, chunk_id)
) PARTITION BY LIST (tenant_id);

-- Both are read for every candidate; out of line, each would cost another look-up.
ALTER TABLE retrieval.chunks ALTER COLUMN embedding SET STORAGE PLAIN, ALTER COLUMN lexemes SET STORAGE MAIN;

CREATE INDEX chunks_of_collection ON retrieval.chunks (collection_id);
CREATE INDEX chunks_of_document ON retrieval.chunks (document_key);
CREATE INDEX chunks_by_word ON retrieval.chunks USING gin (lexemes);
-- Embeddings have length one, so the inner product orders as the cosine does, and is cheaper.
CREATE INDEX chunks_by_meaning ON retrieval.chunks USING hnsw (embedding halfvec_ip_ops);

ALTER TABLE retrieval.chunks ENABLE ROW LEVEL SECURITY;
ALTER TABLE retrieval.chunks FORCE ROW LEVEL SECURITY;
CREATE POLICY readable ON retrieval.chunks FOR SELECT TO downstack_app USING (
  tenant_id = (SELECT retrieval.current_tenant())
  AND collection_id IN (SELECT c.collection_id FROM retrieval.collections AS c));
CREATE POLICY stored_by_writers ON retrieval.chunks FOR INSERT TO downstack_app WITH CHECK (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
CREATE POLICY deleted_by_writers ON retrieval.chunks FOR DELETE TO downstack_app USING (
  tenant_id = (SELECT retrieval.current_tenant()) AND collection_id IN (SELECT retrieval.writable_collections()));
-- For `search_text` alone, which applies the same rules itself.
CREATE POLICY searched_by_words ON retrieval.chunks FOR SELECT TO downstack_owner USING (true);

-- Make the partition of the transaction's tenant, if it is missing. For nobody else: it takes no argument.
-- The table is made apart and then attached, which does not hold up searches of other tenants.
CREATE FUNCTION retrieval.ensure_partition() RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  tenant    CONSTANT uuid := retrieval.current_tenant();
  partition CONSTANT text := 'chunks_' || replace(tenant::text, '-', '');
BEGIN
  IF tenant IS NULL THEN
    RAISE insufficient_privilege USING MESSAGE = 'no tenant in this transaction';
  END IF;
  IF to_regclass(format('retrieval.%I', partition)) IS NOT NULL THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtextextended(partition, 0));
  -- Read from the catalog itself: `to_regclass` may still remember that there was none.
  IF EXISTS (SELECT FROM pg_class WHERE relname = partition AND relnamespace = 'retrieval'::regnamespace) THEN
    RETURN;
  END IF;
  EXECUTE format(
    'CREATE TABLE retrieval.%I (LIKE retrieval.chunks INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING STORAGE)'
    ' WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.05)', partition);
  EXECUTE format('ALTER TABLE retrieval.%I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
  EXECUTE format('ALTER TABLE retrieval.chunks ATTACH PARTITION retrieval.%I FOR VALUES IN (%L)', partition, tenant);
END $$;

-- The full-text leg. `@@` is not leakproof, so under a policy PostgreSQL would read every passage and ignore the GIN
-- index. This function reads as the owner instead, and is therefore all that stands between a caller and other people's
-- passages: it takes the caller from the transaction as the policies do, refuses any tenant but that one, and keeps only
-- collections that the caller's own policies show. Change it with the tests beside you.
--
-- Words are joined by OR and passages ranked by BM25 (k1 = 1.5, b = 0.75; a passage's length is its number of distinct
-- words). A cheap score that saturates like BM25 orders all matches; the exact one orders the first `rescored`.
CREATE FUNCTION retrieval.search_text(
  asked_tenant uuid, asked_collections bigint[], asked_documents bigint[], query text,
  most integer, candidates integer, rescored integer
) RETURNS TABLE (chunk_id bigint, score double precision)
  LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
  SET search_path = pg_catalog, pg_temp
  SET plan_cache_mode = force_custom_plan  -- the tenant must be known when the plan is made, to leave one partition
AS $$
DECLARE
  allowed  bigint[];
  passages double precision;
  mean     double precision;
  words    text[];
  any_word tsquery;
BEGIN
  IF asked_tenant IS DISTINCT FROM retrieval.current_tenant() THEN
    RAISE insufficient_privilege USING MESSAGE = 'not the tenant of this transaction';
  END IF;

  -- The owner is held by the policies on collections like everybody else.
  SELECT array_agg(c.collection_id), greatest(sum(c.chunks), 1), greatest(sum(c.lexemes) / greatest(sum(c.chunks), 1), 1)
    INTO allowed, passages, mean
    FROM retrieval.collections AS c
   WHERE c.tenant_id = asked_tenant AND c.collection_id = ANY (asked_collections);

  SELECT array_agg(w.lexeme), string_agg(quote_literal(w.lexeme), ' | ')::tsquery
    INTO words, any_word
    FROM (SELECT u.lexeme FROM unnest(to_tsvector('pg_catalog.english', query)) AS u LIMIT 64) AS w;

  IF allowed IS NULL OR words IS NULL THEN
    RETURN;
  END IF;

  RETURN QUERY
  WITH terms AS MATERIALIZED (
    SELECT t.n, t.word, quote_literal(t.word)::tsquery AS q FROM unnest(words) WITH ORDINALITY AS t (word, n)
  ), matches AS MATERIALIZED (
    SELECT c.chunk_id, length(c.lexemes) AS distinct_words,
           ARRAY(SELECT ts_rank('{1,1,1,1}', c.lexemes, t.q) FROM terms AS t ORDER BY t.n) AS saturation
      FROM retrieval.chunks AS c
     WHERE c.tenant_id = asked_tenant
       AND c.collection_id = ANY (allowed)
       AND (asked_documents IS NULL OR c.document_key = ANY (asked_documents))
       AND c.lexemes @@ any_word
     LIMIT candidates
  ), weights AS MATERIALIZED (
    SELECT terms.n, terms.word, ln(1 + (greatest(passages, f.frequency) - f.frequency + 0.5) / (f.frequency + 0.5)) AS idf
      FROM terms
      JOIN (SELECT s.n, count(*)::double precision AS frequency
              FROM matches AS m, unnest(m.saturation) WITH ORDINALITY AS s (value, n)
             WHERE s.value > 0 GROUP BY s.n) AS f USING (n)
  ), best AS MATERIALIZED (
    SELECT m.chunk_id, m.distinct_words
      FROM matches AS m,
           LATERAL (SELECT sum(w.idf * m.saturation[w.n]) AS value FROM weights AS w) AS cheap
     ORDER BY cheap.value / (0.7 + 0.3 * m.distinct_words / mean) DESC, m.chunk_id
     LIMIT rescored
  ), finalists AS MATERIALIZED (  -- before their words are unfolded, which is the expensive step
    SELECT b.chunk_id, c.lexemes, 1.5 * (0.25 + 0.75 * b.distinct_words / mean) AS damping
      FROM best AS b
      JOIN retrieval.chunks AS c ON c.tenant_id = asked_tenant AND c.chunk_id = b.chunk_id
  )
  SELECT f.chunk_id, sum(w.idf * 2.5 * u.tf / (u.tf + f.damping)) AS bm25
    FROM finalists AS f
    CROSS JOIN LATERAL (SELECT p.lexeme, cardinality(p.positions)::double precision AS tf
                          FROM unnest(f.lexemes) AS p WHERE p.lexeme = ANY (words)) AS u
    JOIN weights AS w ON w.word = u.lexeme
   GROUP BY f.chunk_id
   ORDER BY bm25 DESC, f.chunk_id
   LIMIT most;
END $$;

-- Rights -------------------------------------------------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA retrieval FROM PUBLIC;
GRANT USAGE ON SCHEMA retrieval TO downstack_app;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA retrieval TO downstack_app;
GRANT USAGE ON SEQUENCE retrieval.chunk_ids TO downstack_app;
GRANT SELECT, INSERT, DELETE ON retrieval.collections, retrieval.chunks TO downstack_app;
GRANT UPDATE (documents, chunks, lexemes) ON retrieval.collections TO downstack_app;
GRANT SELECT, INSERT, DELETE ON retrieval.grants TO downstack_app;
GRANT UPDATE (level) ON retrieval.grants TO downstack_app;
GRANT SELECT, INSERT, DELETE ON retrieval.documents TO downstack_app;
GRANT UPDATE (version, content_hash, title, uri, media_type, content, metadata, chunks, created_at)
  ON retrieval.documents TO downstack_app;
