"""The variables that the environment and `.env` may set: names, types and defaults.

`load_settings` makes the settings from them. `.env.example` explains each one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcq_analytics.errors import McqError
from mcq_analytics.masking import remember

SECRETS = (
    *("DB_DEV_PASSWORD", "DB_TEST_PASSWORD", "DB_PROD_PASSWORD", "MCQ_DAGSTER_PASSWORD"),
    *("DB_DEV_READ_PASSWORD", "DB_TEST_READ_PASSWORD", "DB_PROD_READ_PASSWORD"),
    *("PGPASSWORD", "SLACK_TOKEN", "SMTP_PASSWORD", "MCQ_SPARK_SERVER_TOKEN"),
)
_MUST_BE = {
    "bool_parsing": "true or false",
    "greater_than_equal": "at least {ge}",
    "literal_error": "one of {expected}",
}


def _plain(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Switch = Annotated[bool, BeforeValidator(_plain)]
Method = Literal["log", "slack", "email"]
OptionalSecret = SecretStr | None


class Source(BaseSettings):
    """Where variables come from: the process environment, then `.env` in the working directory.

    An empty value counts as unset, and in the environment it hides the value from `.env`.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_empty_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value not in ("", None)}


class Variables(Source):
    """All variables but those of named Spark clusters, which `settings.spark` reads."""

    MCQ_ENV: str = "dev"
    DB_DEV_URL: OptionalSecret = None
    DB_TEST_URL: OptionalSecret = None
    DB_PROD_URL: OptionalSecret = None
    DB_DEV_PASSWORD: OptionalSecret = None
    DB_TEST_PASSWORD: OptionalSecret = None
    DB_PROD_PASSWORD: OptionalSecret = None
    DB_DEV_READ_URL: OptionalSecret = None
    DB_TEST_READ_URL: OptionalSecret = None
    DB_PROD_READ_URL: OptionalSecret = None
    DB_DEV_READ_PASSWORD: OptionalSecret = None
    DB_TEST_READ_PASSWORD: OptionalSecret = None
    DB_PROD_READ_PASSWORD: OptionalSecret = None
    MCQ_REPLICA_TIMEOUT: CountOrZero = 60
    MCQ_SOURCE_SCHEMA: str = "public"
    MCQ_FACT_SCHEMA: str = "analytics"
    MCQ_STATEMENT_TIMEOUT: Count = 3_600
    MCQ_LOCK_TIMEOUT: CountOrZero = 3_600
    MCQ_PARTITION_START: str | None = None
    MCQ_CATCH_UP_HOURS: Count = 1_000
    MCQ_LOOKBACK_HOURS: CountOrZero = 72
    MCQ_AUDIT_HOURS: CountOrZero = 168
    MCQ_DRIVER_ROWS: CountOrZero = 200_000
    MCQ_HOME: Path = Path(".mcq")
    MCQ_DAGSTER_URL: OptionalSecret = None
    MCQ_DAGSTER_PASSWORD: OptionalSecret = None
    MCQ_SPARK_CLUSTER: str = "local"
    MCQ_SPARK_EXECUTOR_MEMORY: str = "2g"
    MCQ_SPARK_EXECUTOR_CORES: Count = 2
    MCQ_SPARK_CONNECTIONS: Count = 64
    MCQ_SPARK_DRIVER_MEMORY: str = "1200m"
    MCQ_SPARK_SERVER: Switch = True
    MCQ_SPARK_WARM_UP: Switch = True
    MCQ_SPARK_SERVER_TOKEN: OptionalSecret = None
    MCQ_AUTOMATION: Switch | None = None
    MCQ_ALERT_AFTER: Count = 2
    MCQ_DAGSTER_WEBSERVER_URL: str | None = None
    MCQ_DOCS_URL: str | None = None
    ALERT_METHOD: Annotated[Method, BeforeValidator(_plain)] = "log"
    SLACK_WEBHOOK_URL: OptionalSecret = None
    SLACK_TOKEN: OptionalSecret = None
    SLACK_CHANNEL: str | None = None
    SLACK_BASE_URL: str | None = None
    ALERT_EMAIL_FROM: str | None = None
    ALERT_EMAIL_TO: str = ""
    SMTP_HOST: str = "localhost"
    SMTP_PORT: Count = 25
    SMTP_USER: str | None = None
    SMTP_PASSWORD: OptionalSecret = None
    SMTP_STARTTLS: Switch = False
    SMTP_SSL: Switch | None = None
    SMTP_ALLOW_PLAINTEXT: Switch = False

    # Not ours: libpq reads the password, and `dagster dev` marks its processes with the other.
    PGPASSWORD: OptionalSecret = None
    DAGSTER_IS_DEV_CLI: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _remember_secrets(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remember secrets before anything can fail; passwords in URLs follow as those are read."""
        remember(*(values.get(name) for name in SECRETS))
        webhook = values.get("SLACK_WEBHOOK_URL") or ""
        _, _, path = webhook.partition("://")[2].partition("/")
        remember(webhook, path, path.rpartition("/")[2])
        return values

    @property
    def home(self) -> Path:
        """The absolute path of `MCQ_HOME`."""
        return self.MCQ_HOME.expanduser().absolute()

    def secret(self, name: str) -> str | None:
        """Return the value of a secret variable in the clear."""
        value: SecretStr | None = getattr(self, name)
        return None if value is None else value.get_secret_value()


def read_variables() -> Variables:
    """Return the variables of this process.

    Raises:
        McqError: a value is malformed; the message names the variable.

    """
    try:
        return Variables()
    except ValidationError as error:
        # Secrets and URLs accept any text, so this value is neither.
        found = error.errors(include_url=False)[0]
        context = dict(found.get("ctx", {}))
        if "expected" in context:
            context["expected"] = context["expected"].replace(" or ", ", ").replace("'", "")
        must_be = _MUST_BE.get(found["type"], "a whole number").format(**context)
        raise McqError(f"{found['loc'][0]} is {found['input']!r}; it must be {must_be}") from None
