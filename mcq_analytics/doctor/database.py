"""What a run needs of PostgreSQL: rights, tables, indexes, free connections, and a right clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

from sqlalchemy import Connection, text

from mcq_analytics.doctor.findings import Finding, fine, judged, note, of_clocks, wrong
from mcq_analytics.errors import McqError
from mcq_analytics.model.base_tables import BASE_COLUMNS
from mcq_analytics.postgres.database import APPLICATION_NAME, Database
from mcq_analytics.postgres.inspection import inspect_base_tables, missing_indexes
from mcq_analytics.postgres.replicas import primary_state, wait_for_replica
from mcq_analytics.postgres.schema import key_types, require_fact_tables

SUPPORTED = range(14, 19)
ROLES = "see mcq_analytics/postgres/roles.sql"

CONNECTIONS_OF_RUN = 4
"""Those of a run beside its tasks': for the lock, the snapshot, the keys and the fingerprints."""

_RIGHTS = text(
    """
    SELECT current_user AS role, rolsuper AS is_superuser,
        has_database_privilege(current_database(), 'TEMPORARY') AS may_have_temporary_tables,
        to_regnamespace(quote_ident(:source)) IS NULL
            OR has_schema_privilege(to_regnamespace(quote_ident(:source)), 'USAGE')
            AS may_use_source,
        to_regnamespace(quote_ident(:facts)) IS NULL
            OR has_schema_privilege(to_regnamespace(quote_ident(:facts)), 'CREATE, USAGE')
            AS may_create_facts
    FROM pg_roles WHERE rolname = current_user
    """
)
_UNREADABLE = text(
    """
    SELECT relname FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(:source)) AND relname = ANY(:tables)
        AND NOT has_table_privilege(oid, 'SELECT')
    ORDER BY relname
    """
)
_OF_OTHERS = text(
    """
    SELECT relname, pg_get_userbyid(relowner) AS owner FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(:facts)) AND relkind IN ('r', 'p')
        AND NOT pg_has_role(relowner, 'USAGE')
    ORDER BY relname
    """
)
# Where the role may not see what others do, their sessions still count.
_CONNECTIONS = text(
    """
    SELECT CAST(current_setting('max_connections') AS int)
        - CAST(current_setting('superuser_reserved_connections') AS int)
        - CAST(coalesce(current_setting('reserved_connections', true), '0') AS int) AS of_server,
        nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1) AS of_role,
        nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)
            AS of_database,
        count(*) AS used,
        count(*) FILTER (WHERE usename = current_user) AS used_by_role,
        count(*) FILTER (WHERE datname = current_database()) AS used_in_database
    FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name NOT LIKE :ours
    """
)


def examine_server(connection: Connection) -> Iterator[Finding]:
    """Yield its version."""
    version, number = connection.execute(
        text("SELECT current_setting('server_version'), current_setting('server_version_num')")
    ).one()
    yield judged(
        "PostgreSQL",
        int(number) // 10_000 in SUPPORTED,
        f"it answers, version {version}",
        f"use one from {SUPPORTED[0]} to {SUPPORTED[-1]}",
    )


def examine_clock(connection: Connection) -> Iterator[Finding]:
    """Yield whether its clock agrees with that of this machine."""
    before = datetime.now(timezone.utc)
    there = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    here = before + (datetime.now(timezone.utc) - before) / 2
    yield of_clocks("PostgreSQL", "this machine", (there - here).total_seconds())


def examine_rights(connection: Connection, database: Database) -> Iterator[Finding]:
    """Yield what the role may not do although runs need it."""
    names = {"source": database.source_schema, "facts": database.fact_schema}
    rights = connection.execute(_RIGHTS, names).one()
    lacking = [
        what
        for may, what in (
            (rights.may_have_temporary_tables, "create temporary tables"),
            (rights.may_use_source, f"use the schema {database.source_schema}"),
            (rights.may_create_facts, f"create tables in the schema {database.fact_schema}"),
        )
        if not may
    ]
    tables = {"source": database.source_schema, "tables": list(BASE_COLUMNS)}
    lacking += [f"read {name}" for name in connection.execute(_UNREADABLE, tables).scalars()]
    others = connection.execute(_OF_OTHERS, {"facts": database.fact_schema}).all()
    lacking += [f"own {table}, which belongs to {owner}" for table, owner in others]
    if lacking:
        yield wrong("rights", f"the role {rights.role} may not {', nor '.join(lacking)}: {ROLES}")
    elif rights.is_superuser:
        yield note("rights", f"the role {rights.role} is a superuser, and need not be: {ROLES}")
    else:
        yield fine("rights", f"the role {rights.role} has those that it needs")


def examine_tables(connection: Connection, database: Database) -> Iterator[Finding]:
    """Yield whether base tables and facts are as runs need them, and which indexes are missing."""
    try:
        base = inspect_base_tables(connection, database.source_schema)
    except McqError as error:
        yield wrong("base tables", str(error))
        return
    yield fine("base tables", f"all in the schema {database.source_schema}")
    missing = missing_indexes(connection, base, database.source_schema)
    yield judged(
        "indexes",
        not missing,
        f"{len(missing)} missing" if missing else "the base tables have those that runs need",
        "let the owner of the base tables run " + "; ".join(missing),
    )
    try:
        require_fact_tables(connection, database.fact_schema, key_types(base))
    except McqError as error:
        yield wrong("facts", str(error))
    else:
        yield fine("facts", f"their tables are in the schema {database.fact_schema}")


def examine_replica(database: Database) -> Iterator[Finding]:
    """Yield whether runs can read from the replica, as they do."""
    with database.engine().begin() as connection:
        primary = primary_state(connection)
    with database.to_read.engine().connect() as connection:
        wait_for_replica(connection, primary, database.replica_seconds)
    yield fine("replica", "it has caught up with the database that is written to")


def examine_connections(connection: Connection, tasks: int) -> Iterator[Finding]:
    """Yield whether a run with so many tasks at once finds enough free connections."""
    limits = connection.execute(_CONNECTIONS, {"ours": f"{APPLICATION_NAME}%"}).one()
    left = [limits.of_server - limits.used]
    if limits.of_role is not None:
        left.append(limits.of_role - limits.used_by_role)
    if limits.of_database is not None:
        left.append(limits.of_database - limits.used_in_database)
    needed = CONNECTIONS_OF_RUN + tasks
    yield judged(
        "connections",
        needed <= min(left),
        f"a run takes up to {needed}, {tasks} of them for tasks of Spark; {min(left)} are left by "
        "others",
        "raise max_connections or the limit of the role or database, or lower "
        "MCQ_SPARK_CONNECTIONS",
    )
