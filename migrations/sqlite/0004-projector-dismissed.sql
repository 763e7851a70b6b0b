-- What an operator has looked at and let be: no part of the fold, so no replay touches it.

CREATE TABLE IF NOT EXISTS dismissed (
  seq INTEGER PRIMARY KEY,            -- of an event in quarantine
  id,                                 -- of the same event, should the log be replaced
  note TEXT NOT NULL,
  dismissed_at INTEGER NOT NULL       -- Unix milliseconds
);
