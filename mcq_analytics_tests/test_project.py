"""The project itself: settings are listed, the lock names no index, layers point one way."""

from __future__ import annotations

import ast
import re

import pytest

from mcq_analytics_tests.conftest import CHECKOUT

PACKAGE = CHECKOUT / "mcq_analytics"


def test_every_setting_is_listed_in_the_example() -> None:
    code = (PACKAGE / "settings" / "__init__.py").read_text()
    read = set(re.findall(r'"((?:MCQ|ALERT|SLACK|SMTP|DB)_[A-Z_]+)"', code))
    example = (CHECKOUT / ".env.example").read_text()
    listed = set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert read - {"DB_"} <= listed
    assert listed <= read | {"DB_DEV_URL", "DB_TEST_URL", "DB_PROD_URL"}


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
