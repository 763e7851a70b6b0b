"""The classes of advisory locks, which all programs of a database share.

The second number of a lock is that of an event log, or of what the class says.
"""

from typing import Final

BELL_CLASS: Final = 1886547818
"""Shared by writers on their way, exclusive for who listens; also in `event_log_bell`."""
LEAD_CLASS: Final = 1886547819
"""With a number for a projection's name in one event log: who leads it."""
SETUP_CLASS: Final = 1886547820
"""With a number for a schema: one set-up at a time."""
PREPARE_CLASS: Final = 1886547821
"""One at a time makes tables for projections."""
LISTENERS_CLASS: Final = 1886547822
"""Shared by daemons, of which each may rely on another's bell."""
TRANSACTION_CLASS: Final = 1886547823
"""Lets one transaction of a command wait for another."""
