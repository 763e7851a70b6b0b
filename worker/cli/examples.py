"""Examples in the help of the commands that are used most."""

from typing import Final

EXAMPLES: Final = {
    "run": (
        "projector run -d local.db                          # until Ctrl-C",
        "projector run -d local.db --once                   # catch up, and exit",
        "projector run -d local.db --http 127.0.0.1:9187    # with metrics",
    ),
    "status": (
        "projector status -d local.db",
        "projector status -d postgresql://projector@db.example/agents --json",
    ),
    "doctor": ("projector doctor -d local.db",),
    "verify": (
        "projector verify -d local.db",
        "projector verify -d local.db --session web-1",
    ),
    "replay": (
        "projector replay -d local.db --dry-run             # what would change?",
        "projector replay -d local.db --projection session_index",
    ),
    "db setup": (
        "projector db setup -d local.db",
        "projector db setup -d /srv/agents/local.db --group agents",
        "projector db setup -d postgresql://projector@db.example/agents --writer agent",
    ),
    "session list": (
        "projector session list -d local.db --project web",
        "projector session list -d local.db --status ready,in-progress --json",
    ),
    "session view": (
        "projector session view web-1 -d local.db",
        "projector session view web-1 -d local.db --at 2026-03-01T12:00 --json",
    ),
    "session append": (
        """projector session append web-1 -m '[{"role": "user", "content": "Go on"}]'""",
        "projector session append web-1 -m - --id build-42 --wait <messages.json",
    ),
    "quarantine list": (
        "projector quarantine list -d local.db --summary    # how many, by reason",
        "projector quarantine list -d local.db --session web-1 --json",
    ),
}
"""Lines for a shell, by the words of the command."""


def epilog(name: str) -> str | None:
    """The end of a command's help."""
    lines = EXAMPLES.get(name)
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)]) if lines else None
