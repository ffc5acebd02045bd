"""The project itself: settings are listed, the lock names no index, layers point one way."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import pytest

from mcq_analytics.settings.variables import Variables
from mcq_analytics_tests.conftest import CHECKOUT

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


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("transforms", ("dagster", "sqlalchemy", "mcq_analytics.storage", "mcq_analytics.def")),
        ("storage", ("dagster", "mcq_analytics.definitions")),
    ],
)
def test_layers_point_one_way(layer: str, forbidden: tuple[str, ...]) -> None:
    for path in (PACKAGE / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [name for name in names if name.startswith(forbidden)], path


def test_every_module_says_what_lives_there() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
