-- The tables of SQLite's migrations, under the same names. `{schema}` is the schema, quoted, and
-- `{sequence}` the name of the log's sequence as a text. Statements that belong to one object stand
-- together, without an empty line; so set-up can create each again where somebody dropped it.

-- The log. Its rows have positions that grow in the order in which they were drawn: a cache above 1
-- would give each session a range of its own. No column is NOT NULL: an odd row is quarantined by
-- the projector. JSON stands in `data`, MessagePack in `packed`.
CREATE TABLE {schema}.event_log (
  seq bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {schema}.event_log_seq_seq CACHE 1),
  id text COLLATE "C",
  key text COLLATE "C",
  data text,
  packed bytea,
  created_at bigint
);

ALTER TABLE {schema}.event_log ADD CONSTRAINT event_log_pkey PRIMARY KEY (seq);

ALTER TABLE {schema}.event_log ADD CONSTRAINT event_log_id_key UNIQUE (id);

ALTER TABLE {schema}.event_log
ADD CONSTRAINT event_log_data_check CHECK (((data IS NULL) OR (packed IS NULL)));

CREATE INDEX idx_event_log_key ON {schema}.event_log USING btree (key, seq);

CREATE OR REPLACE FUNCTION {schema}.event_log_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
  RAISE EXCEPTION 'event_log is append-only: no %', TG_OP USING ERRCODE = 'restrict_violation';
END
$function$;
REVOKE ALL ON FUNCTION {schema}.event_log_append_only() FROM PUBLIC;

-- A writer may retry blindly; a different event under a known id is refused, under ON CONFLICT too.
-- A position is drawn from the sequence just before this runs, and any other one is refused. Who
-- owns the sequence and restores a log, as `projector copy` does, gives each row its old position by
-- OVERRIDING SYSTEM VALUE with setval(sequence, position) in the place of the value, so that the
-- sequence follows; no writer's role can do either.
CREATE OR REPLACE FUNCTION {schema}.event_log_insert() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
  known record;
BEGIN
  SELECT key, data, packed INTO known FROM {schema}.event_log WHERE id = NEW.id;
  IF FOUND THEN
    IF (known.key, known.data, known.packed)
      IS NOT DISTINCT FROM (NEW.key, NEW.data, NEW.packed) THEN
      RETURN NULL;
    END IF;
    RAISE EXCEPTION 'event_log is append-only: this id is there with another key or data'
      USING ERRCODE = 'unique_violation', SCHEMA = TG_TABLE_SCHEMA, TABLE = 'event_log',
        CONSTRAINT = 'event_log_id_key';
  END IF;
  IF NEW.seq IS DISTINCT FROM currval({sequence}) THEN
    RAISE EXCEPTION 'event_log is append-only: no seq of one''s own'
      USING ERRCODE = 'generated_always';
  END IF;
  RETURN NEW;
END
$function$;
REVOKE ALL ON FUNCTION {schema}.event_log_insert() FROM PUBLIC;

-- A daemon that has nothing to do holds the lock alone and is rung by name. No NOTIFY can be in a
-- transaction that is prepared for two-phase commit: such a writer sets projector.bell to off, and
-- its events are found by the next poll.
CREATE OR REPLACE FUNCTION {schema}.event_log_bell() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
  IF NOT pg_try_advisory_xact_lock_shared(1886547818, TG_RELID::int)
    AND current_setting('projector.bell', true) IS DISTINCT FROM 'off' THEN
    PERFORM pg_notify('projector_' || TG_RELID, '');
  END IF;
  RETURN NULL;
END
$function$;
REVOKE ALL ON FUNCTION {schema}.event_log_bell() FROM PUBLIC;

CREATE TRIGGER event_log_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON {schema}.event_log
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.event_log_append_only();
ALTER TABLE {schema}.event_log ENABLE ALWAYS TRIGGER event_log_append_only;

CREATE TRIGGER event_log_insert BEFORE INSERT ON {schema}.event_log
FOR EACH ROW EXECUTE FUNCTION {schema}.event_log_insert();
ALTER TABLE {schema}.event_log ENABLE ALWAYS TRIGGER event_log_insert;

CREATE TRIGGER event_log_bell AFTER INSERT ON {schema}.event_log
FOR EACH STATEMENT EXECUTE FUNCTION {schema}.event_log_bell();
ALTER TABLE {schema}.event_log ENABLE ALWAYS TRIGGER event_log_bell;

-- A view is rewritten with each of its events: room for the new row in the same page, no lock by
-- VACUUM to give the end of the file back, and VACUUM before much is dead. It is compressed fast or
-- not at all.
CREATE TABLE {schema}.view (
  id text COLLATE "C",
  key text COLLATE "C" NOT NULL,
  data bytea NOT NULL,
  last_offset_id text COLLATE "C" NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL
) WITH (
  fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, vacuum_truncate = false,
  toast.autovacuum_vacuum_scale_factor = 0.05, toast.vacuum_truncate = false
);
DO $do$ BEGIN
  ALTER TABLE {schema}.view ALTER COLUMN data SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  ALTER TABLE {schema}.view ALTER COLUMN data SET STORAGE EXTERNAL;
END $do$;

ALTER TABLE {schema}.view ADD CONSTRAINT view_pkey PRIMARY KEY (id);

-- One row per session.
CREATE UNIQUE INDEX idx_view_session_key ON {schema}.view USING btree (key)
WHERE ((key >= 'session:'::text) AND (key < 'session;'::text));

CREATE TABLE {schema}.checkpoint (
  name text COLLATE "C",              -- of the projection
  version bigint NOT NULL,            -- of the projection that made the views
  position bigint NOT NULL,           -- the last seq folded, skipped or quarantined
  generation bigint NOT NULL,         -- raised by every replay that replaces rows
  digest text COLLATE "C" NOT NULL,   -- of the event at `position`, '' at 0
  skipped bigint NOT NULL,            -- events up to `position` that are of no concern
  kept_in text COLLATE "C" NOT NULL,  -- the table of its views
  key_column text COLLATE "C" NOT NULL, -- the column there that holds a view's key
  prefix text COLLATE "C" NOT NULL    -- what the keys of its rows begin with, '' if all are its own
) WITH (fillfactor = 20);

ALTER TABLE {schema}.checkpoint ADD CONSTRAINT checkpoint_pkey PRIMARY KEY (name);

CREATE TABLE {schema}.quarantine (
  projection text COLLATE "C" NOT NULL,
  seq bigint NOT NULL,
  id text COLLATE "C",                -- id and key as they stand in the log
  key text COLLATE "C",
  reason text COLLATE "C" NOT NULL
);

ALTER TABLE {schema}.quarantine ADD CONSTRAINT quarantine_pkey PRIMARY KEY (projection, seq);

-- What an operator has looked at and let be: no part of the fold, so no replay touches it.
CREATE TABLE {schema}.dismissed (
  seq bigint,                         -- of an event in quarantine
  id text COLLATE "C",                -- of the same event, should the log be replaced
  note text COLLATE "C" NOT NULL,
  dismissed_at bigint NOT NULL        -- Unix milliseconds
);

ALTER TABLE {schema}.dismissed ADD CONSTRAINT dismissed_pkey PRIMARY KEY (seq);

-- What a projection is doing that is not tailing, so that anybody can see it: no part of the fold.
CREATE TABLE {schema}.projection_state (
  projection text COLLATE "C",
  state text COLLATE "C" NOT NULL,    -- 'rebuilding' or 'failed'
  version bigint NOT NULL,            -- of the projection that is being rebuilt, or failed
  why text COLLATE "C" NOT NULL,      -- it failed, '' while it is rebuilding
  events bigint NOT NULL,             -- that the rebuild has read so far, of about `total`
  total bigint NOT NULL,
  since bigint NOT NULL,              -- Unix milliseconds
  updated_at bigint NOT NULL          -- Unix milliseconds
) WITH (fillfactor = 20);

ALTER TABLE {schema}.projection_state
ADD CONSTRAINT projection_state_pkey PRIMARY KEY (projection);

-- A view that costs much to write is written less often than its events come: which are behind.
CREATE TABLE {schema}.deferred (
  projection text COLLATE "C" NOT NULL,
  key text COLLATE "C" NOT NULL,      -- of the view
  folded_position bigint NOT NULL,    -- the view holds its events up to this seq
  read_position bigint NOT NULL,      -- all views that are not in this table hold theirs up to here
  bytes bigint NOT NULL,              -- of the view's row
  cost_ms bigint NOT NULL,            -- how long it took to write it the last time
  since bigint NOT NULL               -- Unix milliseconds
);

ALTER TABLE {schema}.deferred ADD CONSTRAINT deferred_pkey PRIMARY KEY (projection, key);

-- Who leads a projection, so that anybody can see it: a row says something only while its session
-- holds the advisory lock of that projection.
CREATE TABLE {schema}.leader (
  projection text COLLATE "C",        -- '' for all of them
  version bigint NOT NULL,            -- of the projection
  place bigint NOT NULL,              -- among those that the daemon would run
  session bigint NOT NULL,            -- the server's process, as in pg_locks
  host text COLLATE "C" NOT NULL,     -- where the daemon is
  pid bigint NOT NULL,                -- its process there
  machine text COLLATE "C" NOT NULL   -- whose numbers of processes those are
) WITH (fillfactor = 20);

ALTER TABLE {schema}.leader ADD CONSTRAINT leader_pkey PRIMARY KEY (projection);
