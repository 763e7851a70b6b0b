"""`projector deploy`: the units, the compose file, the dashboard and the alerts of deploy/."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import typer

import session_projector
from session_projector.worker.cli.options import heed_name, pasteable
from session_projector.worker.errors import CheckFailed, UsageError, quoted
from session_projector.worker.storage import open as storage
from session_projector.worker.storage.port import Database

_HERE: Final = Path(session_projector.__file__).parent
_PLAIN: Final = re.compile(r"[\w/.+,:@%=?&-]+")
"""What means itself in a unit, in the shell line that it runs, and in YAML."""
_HIDDEN: Final = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")
"""Folders that the units of the system do not see: ProtectHome=, PrivateTmp=."""
_USERS: Final = "~/.config/systemd/user"
_SYSTEMS: Final = "/etc/systemd/system"

Kind = Literal["systemd", "compose", "grafana", "alerts"]


class Files(NamedTuple):
    """Texts by file name, and what to do with the files then, line by line; `{dir}` is their
    folder."""

    texts: Mapping[str, str]
    then: Sequence[str]


def deploy(
    kind: Annotated[Kind, typer.Argument(metavar="systemd|compose|grafana|alerts", help="What.")],
    database: Annotated[
        str,
        typer.Option(
            "-d",
            "--database",
            envvar="PROJECTOR_DATABASE",
            callback=lambda url: heed_name(url) if url else url,
            help="Database file or URL; without it, the one that the files name.",
        ),
    ] = "",
    write: Annotated[
        Path | None, typer.Option("--write", metavar="DIR", help="Write the files into a folder.")
    ] = None,
) -> None:
    """Print units, a compose file, a dashboard or alerts, with this machine's paths."""
    target = storage.database(database) if database else None
    if kind == "systemd":
        found = units(program(), target, as_root=os.geteuid() == 0)
    elif kind == "compose":
        found = compose(served=target is not None and target.is_served)
    else:
        found = monitoring(kind)
    if write is not None:
        _write(write, found)
        return
    for name, text in found.texts.items():
        if len(found.texts) > 1:
            print(f"# {name}")
        print(text)
    print(*_told(found.then, "DIR"), sep="\n", file=sys.stderr)


def program() -> str:
    """The path of the program that runs; raises `UsageError` where there is none to be named."""
    beside = Path(sys.executable).with_name("projector")
    called = Path(sys.argv[0]).absolute()
    found = called if called.name == "projector" else beside
    if not found.is_file():
        raise UsageError(f"there is no {beside}", "install projector, so that a unit can run it")
    return _plain(str(found))


def units(program: str, target: Database | None, *, as_root: bool) -> Files:
    """The units of the system for root, else those of a user's own systemd."""
    if not as_root:
        unit = _text("user/projector.service").replace(
            "%h/.local/opt/projector/bin/projector", program
        )
        if target is not None:
            unit = re.sub("^ExecStartPre=/bin/mkdir.*\n", "", unit, flags=re.M)
            unit = _about(unit, target)
            if target.is_served:
                unit = _set(unit, "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")
        then = [
            f"mkdir -p {_USERS} && cp {{dir}}/projector.service {_USERS}/",
            "systemctl --user daemon-reload && systemctl --user enable --now projector",
            "loginctl enable-linger    # or it ends when you log out",
        ]
        return Files({"projector.service": unit}, then)
    texts = {
        name: _text(name).replace("/opt/projector/bin/projector", program)
        for name in ("projector.service", "projector-board.service")
    }
    then = [
        "useradd --system --user-group --home-dir /var/lib/projector projector",
        f"cp {{dir}}/projector.service {{dir}}/projector-board.service {_SYSTEMS}/",
        "systemctl daemon-reload && systemctl enable --now projector",
        "systemctl enable --now projector-board    # if the extra [board] is installed",
    ]
    places = [program]
    if target is not None and target.file is None:
        drop_in = "projector.service.d/10-postgresql.conf"
        text = _text(drop_in).replace("/opt/projector/bin/projector", program)
        texts |= {drop_in: _about(text, target)}
        del texts["projector-board.service"], then[3]
        then[1] = f"cp -r {{dir}}/projector.service {{dir}}/projector.service.d {_SYSTEMS}/"
        then.insert(
            1, "install -m 600 -o projector /dev/null /etc/projector.pgpass    # and fill it in"
        )
    elif target is not None and target.file is not None:
        places.append(str(target.file))
        folder = _plain(str(target.file.parent))
        if folder != "/var/lib/projector":
            texts = {name: _about(text, target) for name, text in texts.items()}
            name = "projector.service"
            given = f"Environment=PROJECTOR_DATABASE={_unit(str(target.file))}\n"
            texts[name] = texts[name].replace(given, f"{given}ReadWritePaths={_unit(folder)}\n")
            board = "projector-board.service"
            texts[board] = _set(texts[board], "ReadWritePaths", f"-{_unit(folder)}")
            then.insert(1, f"# let the user projector write to {folder}, which holds nothing else")
    for place in places:
        if place.startswith(_HIDDEN):
            then.insert(0, f"# move {place} first: units of the system do not see that folder")
    return Files(texts, then)


def compose(*, served: bool) -> Files:
    """The compose file for SQLite or for a server; it builds the image from a clone."""
    name = "compose.postgresql.yaml" if served else "compose.yaml"
    clone = _HERE.resolve().parent
    there = (clone / "pyproject.toml").is_file()
    text = _text(name).replace(
        "context: ..", f"context: {_plain(str(clone)) if there else 'CLONE'}"
    )
    then = [] if there else ["# write the folder of a clone of projector in place of CLONE"]
    if served:
        then += [
            "mkdir -m 700 {dir}/secrets",
            "for role in postgres projector agent; do"
            " openssl rand -hex 24 >{dir}/secrets/$role; done",
        ]
    then.append(f"docker compose -f {{dir}}/{name} up --build")
    return Files({name: text}, then)


def monitoring(kind: Literal["grafana", "alerts"]) -> Files:
    """The dashboard for Grafana, or the alerts for Prometheus, which name the database if given."""
    if kind == "grafana":
        name = "grafana-dashboard.json"
        then = ["# in Grafana: Dashboards, New, Import, and choose {dir}/" + name]
        return Files({name: (_HERE / "deploy" / name).read_text()}, then)
    then = [
        "cp {dir}/alerts.yaml /etc/prometheus/projector-alerts.yaml",
        "# in prometheus.yml: rule_files: [/etc/prometheus/projector-alerts.yaml], and a job"
        ' `projector` with the target "127.0.0.1:9187"',
        "# run the daemon with --http 127.0.0.1:9187",
    ]
    return Files({"alerts.yaml": pasteable(_text("alerts.yaml"))}, then)


def _text(name: str) -> str:
    """A file of deploy/ without the comment at its top, which is about a clone."""
    return re.sub(r"\A(?:#.*\n)+\n?", "", (_HERE / "deploy" / name).read_text())


def _about(unit: str, target: Database) -> str:
    return re.sub(
        "^Environment=PROJECTOR_DATABASE=.*$",
        lambda _: f"Environment=PROJECTOR_DATABASE={_unit(target.name)}",
        unit,
        flags=re.M,
    )


def _set(unit: str, name: str, value: str) -> str:
    return re.sub(f"^{name}=.*$", lambda _: f"{name}={value}", unit, flags=re.M)


def _unit(text: str) -> str:
    """A value in a unit, where % begins what systemd fills in."""
    return _plain(text).replace("%", "%%")


def _plain(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise UsageError(
            f"{text} has characters that a unit or a shell would take for something else",
            "move it to a path of letters, digits, and /._-",
        )
    return text


def _write(folder: Path, found: Files) -> None:
    """Write the files; what is there already with another content is kept beside, and that is
    said."""
    if not folder.is_dir():
        raise CheckFailed(f"there is no folder {folder}", f"make it: `mkdir {quoted(folder)}`")
    for name, text in found.texts.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if file.exists() and file.read_text(errors="replace") == text:
            print(f"{file} is as it should be")
            continue
        if file.exists():
            file.replace(f"{file}~")
            print(f"{file} was there already, and is {file}~ now")
        file.write_text(text)
        print(f"wrote {file}")
    print("then:", *_told(found.then, quoted(folder)), sep="\n  ")


def _told(then: Sequence[str], folder: str) -> list[str]:
    return [line.replace("{dir}", folder) for line in then]
