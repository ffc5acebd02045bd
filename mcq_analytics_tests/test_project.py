"""The project itself: settings are listed, the lock names no index, imports point one way."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from mcq_analytics.settings.variables import Variables
from mcq_analytics_tests.servers import CHECKOUT

PACKAGE = CHECKOUT / "mcq_analytics"
NOT_OURS = ("PGPASSWORD", "DAGSTER_IS_DEV_CLI")


def test_every_variable_is_listed_in_the_example() -> None:
    read = {name for name in Variables.model_fields if name not in NOT_OURS}
    example = (CHECKOUT / ".env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == read


def test_the_defaults_in_the_example_are_those_of_the_code(tmp_path: Path) -> None:
    defaults = Variables()
    shutil.copy(CHECKOUT / ".env.example", tmp_path / ".env")
    assert Variables() == defaults


def test_the_lock_pins_hashes_and_names_no_index() -> None:
    lock = (CHECKOUT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index" not in lock
    pins = re.findall(r"^[a-z0-9][^\s]*==", lock, re.MULTILINE | re.IGNORECASE)
    assert len(pins) > 50
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", lock) if block)


def test_both_instance_settings_are_the_same() -> None:
    packaged = (PACKAGE / "instance" / "dagster.yaml").read_text()
    assert packaged == (CHECKOUT / "dagster.yaml").read_text()


# Rooms, and modules beside them, from the top down. A module imports from its own room or from a
# lower line; rooms on one line do not know each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__", "__main__"),
    ("api",),
    ("cli",),
    ("launching",),
    ("definitions",),
    ("instance",),
    ("quality", "sample", "doctor"),
    ("compute",),
    ("spark",),
    ("postgres",),
    ("alerting",),
    ("transforms",),
    ("settings",),
    ("model",),
    ("errors", "masking", "progress"),
)
RANKS = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

# The rooms that know a library; all others do without it.
KNOWN_BY = {
    "dagster": {"cli", "launching", "definitions", "instance"},
    # `postgres` reads the errors that come back through Spark's tasks.
    "pyspark": {"api", "definitions", "compute", "doctor", "spark", "postgres", "transforms"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return all modules that a file imports, be it in a function or for type checks only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: a relative import"
            found |= (
                {f"mcq_analytics.{alias.name}" for alias in node.names}
                if node.module == "mcq_analytics"
                else {node.module}
            )
    return found


def test_every_module_belongs_to_a_layer() -> None:
    assert {room_of(path) for path in PACKAGE.rglob("*.py")} <= RANKS.keys()


def test_imports_point_to_the_same_room_or_a_lower_one() -> None:
    wrong = set()
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        for name in imports_of(path):
            package, _, inner = name.partition(".")
            if package == "mcq_analytics":
                imported = inner.partition(".")[0] or "__init__"
                if imported != room and RANKS[imported] <= RANKS[room]:
                    wrong.add(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == set()


@pytest.mark.parametrize("library", KNOWN_BY)
def test_a_library_is_imported_only_by_the_rooms_that_know_it(library: str) -> None:
    importers = {
        room_of(path)
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == library for name in imports_of(path))
    }
    assert importers <= KNOWN_BY[library]


def test_transforms_and_model_know_no_database() -> None:
    for room in ("transforms", "model"):
        for path in (PACKAGE / room).rglob("*.py"):
            names = {name.partition(".")[0] for name in imports_of(path)}
            assert not names & {"sqlalchemy", "psycopg2", "adbc_driver_postgresql"}, path


def test_every_module_says_what_belongs_there() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


PAGES = [CHECKOUT / "README.md", *(CHECKOUT / "docs").rglob("*.md")]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" not in link:
            linked = (page.parent / target) if target else page
            assert linked.exists(), link
            assert not anchor or anchor in anchors_of(linked), link
