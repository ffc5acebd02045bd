"""Where the database is: URLs, engines and connection settings. What is in it is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

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
TABLE_LOCK_SECONDS = 60


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database, the two schemas in it that matter, and our patience with it.

    `statement_seconds` bounds each statement, and how long a transaction may wait for Spark;
    `lock_seconds` how long an attempt waits for another of the same fact.
    """

    url: URL
    source_schema: str
    fact_schema: str
    statement_seconds: int = STATEMENT_SECONDS
    lock_seconds: int = LOCK_SECONDS

    @property
    def session_settings(self) -> dict[str, str]:
        """Server settings of every session.

        All think in UTC and in UTF-8, and write a value as the same text, whatever the server or
        the role is set to. None waits for ever: not for a statement, not for a table's lock, and
        the server does not wait for us, were it that our host is gone.
        """
        patience = f"{self.statement_seconds}s"
        return {
            "TimeZone": "UTC",
            "DateStyle": "ISO",
            "IntervalStyle": "postgres",
            "bytea_output": "hex",
            "client_encoding": "UTF8",
            "statement_timeout": patience,
            "lock_timeout": f"{TABLE_LOCK_SECONDS}s",
            "idle_in_transaction_session_timeout": patience,
            "idle_session_timeout": patience,
            "tcp_keepalives_idle": "60",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        }

    def engine(self, application_name: str = APPLICATION_NAME) -> Engine:
        """Return an engine that opens a connection for each use and keeps none.

        A run needs a handful of connections, each for its own purpose and of its own life.
        """
        return create_engine(
            # For those who ask the engine: what it connects to is among the parameters.
            self.url.set(drivername=DRIVER, query={}),
            poolclass=NullPool,
            hide_parameters=True,
            connect_args=self._parameters(application_name),
        )

    def conninfo(self, application_name: str = APPLICATION_NAME, **settings: str) -> str:
        """Return a libpq connection string, password included, for libraries that take one.

        `settings` are server settings of the session beside those that every session has.
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
        """Return libpq's `options`: what the URL gives, after our session settings."""
        ours = {**self.session_settings, **(settings or {})}
        words = [f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in ours.items()]
        return " ".join([*words, given] if given else words)


def libpq_parameters(url: URL) -> dict[str, str]:
    """Return what libpq is to be given for a URL, by its names: host, port, user, dbname and more.

    All connections are made of these, never of a text: libraries read a URL in different ways.
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
    """Return a URL as a text, password included, that SQLAlchemy reads as it was meant.

    It does not decode the name of a database, nor a host: those stand in the query, which it does.
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
    )
