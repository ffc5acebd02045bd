"""Parsing of PostgreSQL URLs in settings. `postgres.database` makes connections from them."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import URL

from mcq_analytics.errors import McqError
from mcq_analytics.masking import remember

DRIVER = "postgresql+psycopg2"
HIGHEST_PORT = 65_535

_URL = re.compile(
    r"(?P<scheme>[\w+]+)://"
    r"(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?"
    r"(?:\[(?P<ipv6>[^\]/?]+)\]|(?P<host>[^/:?]+))?(?::(?P<port>[^/?]*))?"
    r"(?:/(?P<dbname>[^?]*))?(?:\?(?P<query>.*))?"
)
_OTHER_DATABASES = ("mysql", "mariadb", "sqlite", "oracle", "mssql")
_ENCODE = "percent-encode special characters in the password (@ as %40)"


def read_postgres_url(variable: str, text: str) -> URL:
    """Return the URL with every part decoded, also parts that were given in the query.

    The query of the result has the remaining parameters for libpq, such as `sslmode`. Several
    hosts and ports are comma-separated, as for libpq. Passwords are remembered as secrets.

    >>> read_postgres_url("DB_DEV_URL", "postgresql:///facts?host=/run/postgresql").host
    '/run/postgresql'

    Raises:
        McqError: the text is no such URL. The message names the variable and quotes nothing of the
            text: what looks like a host or a name may be part of a password.

    """
    found = _URL.fullmatch(text.strip())
    if found is None or re.search(r"[\x00-\x1f\x7f]", text.strip()):
        raise _refusal(variable, "is not a URL")
    scheme = found["scheme"].partition("+")[0]
    if scheme in _OTHER_DATABASES:
        raise McqError(f"{variable} is a {scheme} URL; it must be postgresql://…")
    if scheme not in ("postgresql", "postgres"):
        raise _refusal(variable, "is not a PostgreSQL URL")
    for part in ("host", "dbname"):
        if "@" in (found[part] or ""):
            raise _refusal(variable, "cannot be read: it has more than one @")
    parts = {
        name: unquote(found[name]) for name in ("user", "password", "port", "dbname") if found[name]
    }
    host = unquote(found["ipv6"] or found["host"] or "")
    if host:
        parts["host"] = host
    parts |= _query(variable, found["query"] or "")
    if any("\0" in value for value in parts.values()):
        raise _refusal(variable, "contains a null character")
    remember(parts.get("password"), parts.get("sslpassword"))
    port = _port(variable, parts.pop("port", None))
    return URL.create(
        DRIVER,
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        host=parts.pop("host", None),
        port=int(port) if port and port.isdigit() else None,
        database=parts.pop("dbname", None),
        query={**parts, "port": port} if port and not port.isdigit() else parts,
    )


def _query(variable: str, query: str) -> dict[str, str]:
    """Return the parameters of a query. A + stands for a space, as for SQLAlchemy."""
    given: dict[str, list[str]] = {}
    for pair in filter(None, query.split("&")):
        name, equals, value = pair.partition("=")
        if not equals or not _is_known_to_libpq(unquote_plus(name)):
            raise _refusal(variable, "has a parameter that libpq does not know")
        if value:
            given.setdefault(unquote_plus(name), []).append(unquote_plus(value))
    parts = {
        name: ",".join(values) if name in ("host", "hostaddr", "port") else values[-1]
        for name, values in given.items()
    }
    # SQLAlchemy writes hosts with ports as host=h1:p1&host=h2:p2.
    hosts = parts.get("host", "").split(",")
    if "port" not in parts and any(re.fullmatch(r"[\w.-]*:\d+", host) for host in hosts):
        parts["host"] = ",".join(host.partition(":")[0] for host in hosts)
        parts["port"] = ",".join(host.partition(":")[2] for host in hosts)
    return parts


def _is_known_to_libpq(name: str) -> bool:
    if not re.fullmatch(r"[a-z_]+", name):
        return False
    try:
        parse_dsn(f"{name}=''")
    except ProgrammingError:
        return False
    return True


def _port(variable: str, port: str | None) -> str | None:
    for one in (port or "").split(","):
        if one and not (re.fullmatch("[0-9]{1,5}", one) and 0 < int(one) <= HIGHEST_PORT):
            raise _refusal(variable, f"has a port that is not a number from 1 to {HIGHEST_PORT}")
    return port


def _refusal(variable: str, what: str) -> McqError:
    return McqError(
        f"{variable} {what}: write it as postgresql://user:password@host:5432/database, and "
        f"{_ENCODE}, or set {variable.removesuffix('_URL')}_PASSWORD to it"
    )
