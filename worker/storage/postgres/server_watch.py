"""Run a PostgreSQL server until nobody holds the other end of stdin, then delete its folder.

`python server_watch.py FOLDER UID:GID INITDB… -- SERVER…`; each line of stdin is `start` or the
name of the signal that ends the server, and is repeated on stdout once that is done.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    folder, user, *commands = sys.argv[1:]
    split = commands.index("--")
    initdb, serve = commands[:split], commands[split + 1 :]
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, "umask": 0o077}
    if os.geteuid() == 0:  # which no server runs as
        uid, _, gid = user.partition(":")
        options |= {"user": int(uid), "group": int(gid), "extra_groups": []}
    server: subprocess.Popen[bytes] | None = None
    try:
        with Path(folder, "log").open("ab") as log:
            options["stdout"] = log
            subprocess.run(initdb, check=True, **options)  # which says on stderr what it lacks
            options["stderr"] = log
            print("ready", flush=True)
            for line in sys.stdin:
                if (word := line.strip()) == "start":
                    server = subprocess.Popen(serve, **options)
                elif server is not None:
                    server.send_signal(signal.Signals[word])
                    server.wait()
                print(word, flush=True)
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
        while Path(folder).exists():  # what a process of a killed server still writes
            with suppress(OSError):
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
