"""Where the database is: URLs, engines and connection settings. What is in it is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.pool import NullPool

from mcq_analytics.settings import Settings, load_settings
from mcq_analytics.storage.embedded import embedded_url

APPLICATION_NAME = "mcq_analytics"
CONNECT_TIMEOUT_SECONDS = 10

# Every session thinks in UTC whatever the server is set to, and is never ended for being idle
# between the statements of a long run by a default that was meant for web requests.
SESSION_SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "idle_in_transaction_session_timeout": "0",
}


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database and the two schemas in it that matter."""

    url: URL
    source_schema: str
    fact_schema: str

    def engine(self, application_name: str = APPLICATION_NAME) -> Engine:
        """Return an engine that opens a connection for each use and keeps none.

        A run needs a handful of connections, each for its own purpose and of its own life.
        """
        query = dict(self.url.query)
        options = _options(query.pop("options", ""))
        return create_engine(
            self.url.set(query=query),
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": application_name,
                "options": options,
            },
        )

    def libpq_uri(self, application_name: str = APPLICATION_NAME, **settings: str) -> str:
        """Return a URI, password included, for libraries that connect through libpq.

        `settings` are server settings of the session beside those that every session has.
        """
        query = {key: value for key, value in self.url.query.items() if isinstance(value, str)}
        query["options"] = _options(query.get("options", ""), settings)
        query["application_name"] = application_name
        query.setdefault("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
        authority = self.url.set(drivername="postgresql", query={})
        pairs = "&".join(f"{key}={quote(value, safe='')}" for key, value in query.items())
        return f"{authority.render_as_string(hide_password=False)}?{pairs}"


def _options(given: str | tuple[str, ...], settings: dict[str, str] | None = None) -> str:
    """Return libpq's `options`: what the URL gives, after our session settings."""
    ours = {**SESSION_SETTINGS, **(settings or {})}
    words = [f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in ours.items()]
    if isinstance(given, str) and given:
        words.append(given)
    return " ".join(words)


def open_database(settings: Settings) -> Database:
    """Return the database of `settings`; in `dev` without a URL, start the embedded one.

    Raises:
        McqError: the embedded server does not start.

    """
    url = settings.database_url
    if url is None:
        url = embedded_url(settings.home)
    return Database(url, settings.source_schema, settings.fact_schema)


def get_engine(env: str) -> Engine:
    """Return an engine on the database of `env` (`dev`, `test` or `prod`; SPEC section 4).

    No connection is made before the first use, but where `dev` has no URL the embedded server
    is started.

    Raises:
        UsageError: an unknown environment.
        McqError: its URL is missing or malformed.

    """
    return open_database(load_settings(env)).engine()
