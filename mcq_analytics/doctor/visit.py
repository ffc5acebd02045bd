"""The whole way of a run, from its settings to the executors, examined in turn."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial

from sqlalchemy import Connection

from mcq_analytics.doctor.cluster import Spark, examine_master
from mcq_analytics.doctor.database import (
    examine_clock,
    examine_connections,
    examine_replica,
    examine_rights,
    examine_server,
    examine_tables,
)
from mcq_analytics.doctor.findings import Examination, Finding, Grade, carried_out
from mcq_analytics.doctor.machine import examine_disk, examine_java
from mcq_analytics.postgres.database import APPLICATION_NAME, Database, open_database
from mcq_analytics.settings import Settings


def findings(settings: Settings) -> Iterator[Finding]:
    """Yield what was found, as soon as it is. What needs a thing that is wrong is left out.

    Raises:
        McqError: the embedded server does not start.

    """
    database = open_database(settings)
    may_begin = yield from _until_wrong(
        ("Java", partial(examine_java, settings.spark, settings.home)),
        ("Spark", partial(examine_master, settings.spark)),
    )
    yield from carried_out("disk", partial(examine_disk, settings.spark, settings.home))
    is_up = yield from _until_wrong(("PostgreSQL", _on(database, examine_server)))
    if is_up:
        for topic, examine in (
            ("clocks", examine_clock),
            ("rights", partial(examine_rights, database=database)),
            ("tables", partial(examine_tables, database=database)),
        ):
            yield from carried_out(topic, _on(database, examine))
        if database.read_url is not None:
            yield from carried_out("replica", partial(examine_replica, database))
    if not may_begin:
        return
    spark = Spark(settings.spark, settings.home)
    try:
        yield from carried_out("Spark", spark.examine_session)
        if is_up and spark.tasks is not None:
            needs = partial(examine_connections, tasks=spark.tasks)
            yield from carried_out("connections", _on(database, needs))
            conninfo = database.conninfo(f"{APPLICATION_NAME} doctor task")
            yield from carried_out("executors", partial(spark.examine_executors, conninfo))
    finally:
        spark.end()


def _until_wrong(*examinations: tuple[str, Examination]) -> Generator[Finding, None, bool]:
    """Yield findings up to the first examination that finds something wrong; return if none did."""
    for topic, examine in examinations:
        found = list(carried_out(topic, examine))
        yield from found
        if any(finding.grade is Grade.WRONG for finding in found):
            return False
    return True


def _on(database: Database, examine: Callable[[Connection], Iterator[Finding]]) -> Examination:
    """Return an examination with a connection of its own, which an error may spoil."""

    def examination() -> Iterator[Finding]:
        with database.engine().connect() as connection:
            yield from examine(connection)

    return examination
