"""Programs that turn into another user: root at first, to import what others may not read."""

BECOME = """
import os, sys
def become(uid, *groups):
    os.setgroups(groups)
    os.setgid(uid)
    os.setuid(uid)
"""
PROJECTOR = f"""{BECOME}
import importlib, pkgutil, tempfile
import anyio
import session_projector
from session_projector.worker.cli import main as cli
anyio.open_signal_receiver  # imported when first named
for module in pkgutil.walk_packages(session_projector.__path__, "session_projector."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
streams = sys.stdout, sys.stderr
with tempfile.TemporaryDirectory() as folder:  # all that Python itself imports late
    cli.app(["run", "--once", "--create", "-d", folder + "/db"], standalone_mode=False)
sys.stdout, sys.stderr = streams
"""
"""The program, imported whole; what comes after it becomes somebody, and calls `cli.main()`."""
