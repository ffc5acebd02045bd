"""How to reach the database: URLs, engines and session settings. Nothing about its contents."""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg2.extensions import make_dsn
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from mcq_analytics.postgres.embedded import embedded_url
from mcq_analytics.settings import Settings
from mcq_analytics.settings.database_urls import DRIVER

APPLICATION_NAME = "mcq_analytics"
CONNECT_TIMEOUT_SECONDS = 10

STATEMENT_SECONDS = 3_600
LOCK_SECONDS = 3_600
REPLICA_SECONDS = 60
TABLE_LOCK_SECONDS = 60


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database, our two schemas in it, and timeouts.

    `statement_seconds` limits each statement, and how long a transaction may wait for Spark;
    `lock_seconds` limits how long an attempt waits for another attempt. Attempts read the base
    tables at `read_url`, if it is set: it is that of a replica, for which they wait up to
    `replica_seconds`.
    """

    url: URL
    source_schema: str
    fact_schema: str
    statement_seconds: int = STATEMENT_SECONDS
    lock_seconds: int = LOCK_SECONDS
    read_url: URL | None = None
    replica_seconds: int = REPLICA_SECONDS

    @property
    def to_read(self) -> Database:
        """The database where attempts read the base tables: its replica, if it has one."""
        return self if self.read_url is None else replace(self, url=self.read_url, read_url=None)

    @property
    def session_settings(self) -> dict[str, str]:
        """Server settings of every session.

        They fix time zone, encoding and text formats, whatever the defaults of the server or role.
        They limit every wait: for a statement, for a table's lock, and the server's wait for us, in
        case our host is gone.
        """
        timeout = f"{self.statement_seconds}s"
        return {
            "TimeZone": "UTC",
            "DateStyle": "ISO",
            "IntervalStyle": "postgres",
            "bytea_output": "hex",
            "client_encoding": "UTF8",
            "statement_timeout": timeout,
            "lock_timeout": f"{TABLE_LOCK_SECONDS}s",
            "idle_in_transaction_session_timeout": timeout,
            "idle_session_timeout": timeout,
            "tcp_keepalives_idle": "60",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        }

    def engine(self, application_name: str = APPLICATION_NAME) -> Engine:
        """Return an engine without a pool: each use opens a connection of its own.

        A run needs only a few connections, each for its own purpose and lifetime.
        """
        return create_engine(
            # Only for display: the connection is made from `connect_args`.
            self.url.set(drivername=DRIVER, query={}),
            poolclass=NullPool,
            hide_parameters=True,
            # Nothing here is of this type, which would be looked up on every connection.
            use_native_hstore=False,
            connect_args=self._parameters(application_name),
        )

    def conninfo(self, application_name: str = APPLICATION_NAME, **settings: str) -> str:
        """Return a libpq connection string, password included, for libraries that need one.

        `settings` are further server settings of the session.
        """
        return make_dsn(**self._parameters(application_name, settings))

    def _parameters(
        self, application_name: str, settings: dict[str, str] | None = None
    ) -> dict[str, str]:
        given = libpq_parameters(self.url)
        return {
            "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
            **given,
            "application_name": application_name,
            "options": self._options(given.get("options", ""), settings),
        }

    def _options(self, given: str, settings: dict[str, str] | None) -> str:
        """Return libpq's `options`: our session settings, then those of the URL, which win."""
        ours = {**self.session_settings, **(settings or {})}
        words = [f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in ours.items()]
        return " ".join([*words, given] if given else words)


def libpq_parameters(url: URL) -> dict[str, str]:
    """Return libpq's parameters for a URL: host, port, user, password, dbname and others.

    Every connection is made from these, never from URL text, which libraries parse differently.
    """
    parts = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    query = {
        name: value if isinstance(value, str) else ",".join(value)
        for name, value in url.query.items()
    }
    return {name: str(value) for name, value in {**parts, **query}.items() if value}


def sqlalchemy_text(url: URL) -> str:
    """Return a URL, password included, as text that SQLAlchemy parses correctly.

    SQLAlchemy does not decode the database name or host, so they go into the query, which it does
    decode.
    """
    query = libpq_parameters(url)
    hosts, port = query.get("host", "").count(",") + 1, query.get("port")
    if port is not None and "," not in port:
        query["port"] = ",".join([port] * hosts)
    user = query.pop("user", None)
    password = query.pop("password", None) if user else None
    authority = URL.create(DRIVER, username=user, password=password, query=query)
    return authority.render_as_string(hide_password=False)


def open_database(settings: Settings) -> Database:
    """Return the database of `settings`; in `dev` without a URL, start the embedded one.

    Raises:
        McqError: the embedded server does not start.

    """
    url = settings.database_url
    if url is None:
        url = embedded_url(settings.home)
    return Database(
        url,
        settings.source_schema,
        settings.fact_schema,
        settings.statement_seconds,
        settings.lock_seconds,
        settings.read_url,
        settings.replica_seconds,
    )
