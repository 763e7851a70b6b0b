-- Session support: a log with positions that nobody can rewrite, one view row per session,
-- a checkpoint and a quarantine for each projection.

-- The log gets `seq`, in the order the rows were written. A table is made anew because a rowid
-- that is not an INTEGER PRIMARY KEY is renumbered by VACUUM. No column is NOT NULL: an odd row
-- is quarantined by the projector, whereas INSERT OR IGNORE would drop it without a word.
PRAGMA legacy_alter_table = ON; -- other people's SQL views go on naming `event_log`
CREATE TABLE event_log_new (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT UNIQUE,
  key TEXT,
  data BLOB,
  created_at INTEGER
);
INSERT INTO event_log_new (id, key, data, created_at)
SELECT id, key, data, created_at FROM event_log ORDER BY rowid;
DROP TABLE event_log;
ALTER TABLE event_log_new RENAME TO event_log;
PRAGMA legacy_alter_table = OFF;
CREATE INDEX idx_event_log_key ON event_log (key);

CREATE TRIGGER event_log_no_update BEFORE UPDATE ON event_log BEGIN
  SELECT RAISE (ABORT, 'event_log is append-only: no UPDATE');
END;
CREATE TRIGGER event_log_no_delete BEFORE DELETE ON event_log BEGIN
  SELECT RAISE (ABORT, 'event_log is append-only: no DELETE');
END;
-- A writer may retry blindly; a different event under a known id is refused. OR REPLACE would
-- get past the two triggers above (recursive_triggers is off by default), so it is met here.
-- Where no seq is given NEW.seq is -1 in a BEFORE trigger, which matches no row.
CREATE TRIGGER event_log_known_id BEFORE INSERT ON event_log
WHEN EXISTS (SELECT 1 FROM event_log WHERE id = NEW.id OR seq = NEW.seq) BEGIN
  SELECT CASE
    WHEN EXISTS (
      SELECT 1 FROM event_log WHERE id = NEW.id AND key IS NEW.key AND data IS NEW.data
    ) THEN RAISE (IGNORE)
    WHEN EXISTS (SELECT 1 FROM event_log WHERE id = NEW.id)
      THEN RAISE (ABORT, 'event_log is append-only: this id is there with another key or data')
    ELSE RAISE (ABORT, 'event_log is append-only: this seq is taken')
  END;
END;
-- sqlite_sequence still holds the newest seq before this statement; the rows that the same
-- statement inserted before this one are met by looking at the table.
CREATE TRIGGER event_log_next_seq AFTER INSERT ON event_log BEGIN
  SELECT CASE
    WHEN NEW.seq <= max(
      coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event_log'), 0),
      coalesce((SELECT max(seq) FROM event_log WHERE seq <> NEW.seq), 0)
    ) THEN RAISE (ABORT, 'event_log is append-only: seq must be above the newest one')
    WHEN NEW.seq > 1000000 + max(
      coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'event_log'), 0),
      coalesce((SELECT max(seq) FROM event_log WHERE seq < NEW.seq), 0)
    ) THEN RAISE (ABORT, 'event_log: seq may be at most 1000000 above the newest one')
  END;
END;

-- One row per session. Where Kanbatte's writers left several, the newest row wins.
DELETE FROM view WHERE rowid IN (
  SELECT rowid FROM (
    SELECT rowid, row_number() OVER (PARTITION BY key ORDER BY updated_at DESC, rowid DESC) AS n
    FROM view WHERE key >= 'session:' AND key < 'session;'
  ) WHERE n > 1
);
CREATE UNIQUE INDEX idx_view_session_key ON view (key)
WHERE key >= 'session:' AND key < 'session;';

CREATE TABLE checkpoint (
  name TEXT PRIMARY KEY,              -- of the projection
  version INTEGER NOT NULL,           -- of the projection that made the views
  position INTEGER NOT NULL,          -- the last seq folded, skipped or quarantined
  generation INTEGER NOT NULL,        -- raised by every replay that replaces rows
  digest TEXT NOT NULL,               -- of the event at `position`, '' at 0
  skipped INTEGER NOT NULL,           -- events up to `position` that are of no concern
  kept_in TEXT NOT NULL,              -- the table of its views
  key_column TEXT NOT NULL,           -- the column there that holds a view's key
  prefix TEXT NOT NULL                -- what the keys of its rows begin with, '' if all are its own
);

CREATE TABLE quarantine (
  projection TEXT NOT NULL,
  seq INTEGER NOT NULL,
  id,                                 -- id and key as they stand in the log, whatever their type
  key,
  reason TEXT NOT NULL,
  PRIMARY KEY (projection, seq)
) WITHOUT ROWID;
