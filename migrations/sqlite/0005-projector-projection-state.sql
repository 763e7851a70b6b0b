-- What a projection is doing that is not tailing, so that anybody can see it: no part of the fold.

CREATE TABLE IF NOT EXISTS projection_state (
  projection TEXT PRIMARY KEY,
  state TEXT NOT NULL,                -- 'rebuilding' or 'failed'
  version INTEGER NOT NULL,           -- of the projection that is being rebuilt, or failed
  why TEXT NOT NULL,                  -- it failed, '' while it is rebuilding
  events INTEGER NOT NULL,            -- that the rebuild has read so far, of about `total`
  total INTEGER NOT NULL,
  since INTEGER NOT NULL,             -- Unix milliseconds
  updated_at INTEGER NOT NULL         -- Unix milliseconds
);
