"""Pure code: events in, views out. No clock, no I/O, no database."""

from session_projector.projections.projection import Projection
from session_projector.projections.search import Search
from session_projector.projections.session_index import SessionIndex
from session_projector.projections.sessions import Sessions

BUILT_IN: tuple[Projection, ...] = (Sessions(), SessionIndex())
"""Every projection that a daemon runs; a new one is one file and one line here."""
SEARCH: Projection = Search()
"""One that costs much, and runs in a database only where it was asked for."""
