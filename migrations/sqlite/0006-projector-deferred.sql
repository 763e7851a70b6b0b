-- A view that costs much to write is written less often than its events come: which ones are behind.

CREATE TABLE IF NOT EXISTS deferred (
  projection TEXT NOT NULL,
  key TEXT NOT NULL,                  -- of the view
  folded_position INTEGER NOT NULL,   -- the view holds its events up to this seq
  read_position INTEGER NOT NULL,     -- all views that are not in this table hold theirs up to here
  bytes INTEGER NOT NULL,             -- of the view's row
  cost_ms INTEGER NOT NULL,           -- how long it took to write it the last time
  since INTEGER NOT NULL,             -- Unix milliseconds
  PRIMARY KEY (projection, key)
) WITHOUT ROWID;
