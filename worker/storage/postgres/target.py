"""What a `postgresql://` URL names: a server, a database on it, and a schema in that."""

import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

from session_projector.worker.errors import UsageError

_SECRETS: Final = {"password", "sslpassword", "oauth_client_secret"}
_NAME_BYTES: Final = 63
"""The longest name that PostgreSQL keeps."""


class Target(NamedTuple):
    """Where a database is. `name` is its URL without a password, `schema` not quoted."""

    name: str
    settings: dict[str, str]
    schema: str

    def __repr__(self) -> str:
        return f"Target({self.name!r})"

    def name_for(self, role: str, database: str = "") -> str:
        """The URL by which another role opens it, or another database of its server; '' is the
        user of this process."""
        parts = urlsplit(self.name)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        replaced = {"user", "dbname"} if database else {"user"}
        rest = [(key, value) for key, value in pairs if key not in replaced]
        hosts = parts.netloc.rpartition("@")[2]
        path = f"/{quote(database, safe='')}" if database else parts.path
        user = f"{quote(role, safe='')}@" if role else ""
        return _joined(parts._replace(path=path), user + hosts, rest)

    @property
    def prefix(self) -> str:
        """What stands before the name of a table: the schema, quoted, and a dot."""
        return identifier(self.schema) + "."


def parse(url: str) -> Target:
    """The target of a URL that libpq takes, with `schema` among its parameters or without; raises
    `UsageError`, and never says a password."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    schema = ([value for key, value in pairs if key == "schema"] or ["public"])[-1]
    rest = [(key, value) for key, value in pairs if key != "schema"]
    name = _name(parts, pairs)
    if not schema or "\0" in schema or len(schema.encode()) > _NAME_BYTES:
        raise UsageError(
            f"{name}: {schema!r} is no name of a schema", "correct it, or leave it out"
        )
    try:
        found = conninfo_to_dict(_joined(parts, parts.netloc, rest))
    except (psycopg.Error, ValueError) as error:
        said = re.sub(r"//[^@\s]*@", "//", str(error).strip())
        for secret in _passwords(parts, pairs):
            said = said.replace(secret, "***")
        raise UsageError(f"{name} is no URL of a PostgreSQL database ({said})", _FORM) from None
    settings = {key: str(value) for key, value in found.items() if value is not None}
    return Target(name, settings, schema)


_FORM: Final = (
    "give one such as postgresql://USER@HOST:5432/DATABASE?schema=NAME; what is no letter or digit"
    " in a name or password is written as %20 and so on"
)


def passwords(url: str) -> list[str]:
    """The passwords in a URL, as they stand there and decoded."""
    parts = urlsplit(url)
    return _passwords(parts, parse_qsl(parts.query, keep_blank_values=True))


def _passwords(parts: SplitResult, pairs: list[tuple[str, str]]) -> list[str]:
    user, _, _ = parts.netloc.rpartition("@")
    _, _, secret = user.partition(":")
    found = [secret, unquote(secret)]
    for key, value in pairs:
        if key in _SECRETS:
            found += [value, quote(value, safe="")]
    return sorted({one for one in found if one}, key=len, reverse=True)


def _name(parts: SplitResult, pairs: list[tuple[str, str]]) -> str:
    user, at, hosts = parts.netloc.rpartition("@")
    shown = [(key, value) for key, value in pairs if key not in _SECRETS]
    return _joined(parts, user.partition(":")[0] + at + hosts, shown)


def _joined(parts: SplitResult, netloc: str, pairs: list[tuple[str, str]]) -> str:
    query = urlencode(pairs, quote_via=quote, safe="/,:")
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def identifier(name: str) -> str:
    """A name in quotes."""
    return '"' + name.replace('"', '""') + '"'
