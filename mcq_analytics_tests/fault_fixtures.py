"""Fixtures of a run to inject faults into; a module names this one in `pytest_plugins`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from pyspark.sql import SparkSession

from mcq_analytics.model.facts import IdType
from mcq_analytics_tests.depth import FAULTS
from mcq_analytics_tests.faults import Hit, changed_database, copy_to_hit
from mcq_analytics_tests.reading import WAYS, read_by
from mcq_analytics_tests.servers import OwnServer


@pytest.fixture(params=range(FAULTS))
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The random choices of a test; a repetition has the same choices each time."""
    return random.Random(request.node.name)


@pytest.fixture(scope="module")
def template(
    own_server: OwnServer, own_templates: Callable[[IdType], str], spark: SparkSession
) -> Iterator[str]:
    """A database with a day computed and two days changed."""
    with changed_database(own_server.url(), own_templates, spark) as name:
        yield name


@pytest.fixture
def hit(
    own_server: OwnServer, template: str, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hit]:
    """A copy of the database, whose next run will be hit.

    A reader looks at it all the time. A repetition reads base rows in another way.
    """
    read_by(WAYS[chance.randrange(len(WAYS))], monkeypatch)
    with copy_to_hit(own_server.url(), template, monkeypatch) as found:
        yield found
