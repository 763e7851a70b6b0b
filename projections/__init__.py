"""Pure code: events in, views out. No clock, no I/O, no database."""

from projections.projection import Projection
from projections.session_index import SessionIndex
from projections.sessions import Sessions

BUILT_IN: tuple[Projection, ...] = (Sessions(), SessionIndex())
"""Every projection that a daemon runs; a new one is one file and one line here."""
