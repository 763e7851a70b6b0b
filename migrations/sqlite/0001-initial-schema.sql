-- Kanbatte's first migration, by name and effect.
CREATE TABLE event_log (
  id TEXT PRIMARY KEY,
  key TEXT NOT NULL,
  data BLOB NOT NULL,
  created_at INTEGER NOT NULL
);
CREATE INDEX idx_event_log_key ON event_log (key);
CREATE INDEX idx_event_log_created_at ON event_log (created_at);
