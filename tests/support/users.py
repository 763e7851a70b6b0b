"""Programs that turn into another user: forked when all is imported, as others
may not read that."""

BECOME = """
import os, sys
def become(uid, *groups):
    os.setgroups(groups)
    os.setgid(uid)
    os.setuid(uid)
"""
PROJECTOR = f"{BECOME}\nfrom session_projector.worker.cli import main as cli\n"
"""The program, for a process that is forked; what comes after it becomes somebody, and calls
`cli.main()`."""
