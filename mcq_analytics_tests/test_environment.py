"""The archive for Spark's executors: what is in it, and that a Python unpacked from it can work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from mcq_analytics.settings.spark import SparkSettings
from mcq_analytics.spark import own_session
from mcq_analytics.spark.environment import IMPORTED_BY_TASKS, package_environment
from mcq_analytics_tests.clusters import SPARK_HOME
from mcq_analytics_tests.commands import call, fails

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages/"
CHECK = """
import importlib, sys
from importlib.metadata import version
for name in sys.argv[1:]:
    importlib.import_module(name)
import mcq_analytics, pyarrow, pyspark
print(version("mcq_analytics"))
for module in (mcq_analytics, pyarrow, pyspark):
    print(module.__file__)
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_environment(tmp_path_factory.mktemp("packed") / "packed.tar.gz").path


@pytest.fixture
def members(archive: Path) -> Iterator[dict[str, tarfile.TarInfo]]:
    with tarfile.open(archive) as opened:
        yield {member.name: member for member in opened}


def test_the_archive_has_the_package_and_what_tasks_import_and_nothing_else(
    members: dict[str, tarfile.TarInfo],
) -> None:
    tops = {name.removeprefix(SITE).split("/")[0] for name in members if name.startswith(SITE)}
    assert tops >= {"mcq_analytics", "pyarrow", "adbc_driver_postgresql", "psycopg2", "pandas"}
    described = f"{SITE}mcq_analytics-{version('mcq_analytics')}.dist-info/METADATA"
    assert f"{SITE}mcq_analytics/spark/source.py" in members
    assert described in members
    unwanted = {"pyspark", "py4j", "dagster", "pytest", "pip", "setuptools", "mcq_analytics_tests"}
    assert not tops & unwanted
    for name in members:
        assert not {"tests", "__pycache__", ".."} & set(name.split("/")), name
    assert {name for name in members if not name.startswith(SITE)} == {
        "bin/python",
        "bin/python3",
        "pyvenv.cfg",
    }


def test_the_only_links_lead_to_the_interpreter_itself(
    members: dict[str, tarfile.TarInfo],
) -> None:
    links = {name: member.linkname for name, member in members.items() if not member.isfile()}
    assert set(links) == {"bin/python", "bin/python3"}
    for target in links.values():
        assert Path(target).is_file()
        assert not Path(target).is_symlink()
        # Not in a virtual environment, which other machines do not have.
        assert not (Path(target).parent.parent / "pyvenv.cfg").exists()


def test_an_unpacked_python_imports_what_tasks_import_from_the_archive_alone(
    archive: Path, tmp_path: Path
) -> None:
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(tmp_path)], check=True)
    of_spark = [str(path) for path in (SPARK_HOME / "python" / "lib").glob("*.zip")]
    done = subprocess.run(
        [str(tmp_path / "bin" / "python"), "-c", CHECK, *IMPORTED_BY_TASKS],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(of_spark)},
    )
    assert done.returncode == 0, done.stderr
    own_version, *files, pyspark = done.stdout.split()
    assert own_version == version("mcq_analytics")
    for file in files:
        assert file.startswith(str(tmp_path / SITE)), file
    assert ".zip/" in pyspark


@pytest.mark.parametrize("name", ["python3", "python3.9"])
def test_a_plain_name_is_this_python_here_though_workers_have_the_path_of_executors(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/not/there")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    settings = SparkSettings(cluster="lab", conf={"spark.pyspark.python": name})
    for _ in range(2):
        own_session._choose_python(settings, tmp_path)
    assert os.environ["PYSPARK_PYTHON"] == name
    assert os.environ["PATH"].endswith("/python/bin:/usr/bin:/bin")
    done = subprocess.run(
        [name, "-c", "import sys; print(sys.prefix)"],
        executable=shutil.which(name),
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "environment/bin:/usr/bin:/bin", "PYTHONPATH": ""},
    )
    assert done.stdout.strip() == sys.prefix


def test_the_command_writes_the_same_bytes_again_and_says_how_to_use_them(archive: Path) -> None:
    done = call("package-environment")
    assert done.exit_code == 0, done.output
    written = Path("mcq-environment.tar.gz")
    [line] = done.output.splitlines()
    assert line.startswith(f"{written}: {written.stat().st_size / 2**20:.0f} MiB for Python 3.")
    assert f"spark.archives={written.absolute()}#environment" in line
    assert written.read_bytes() == archive.read_bytes()
    assert [path.name for path in Path.cwd().iterdir()] == [written.name]


def test_a_folder_that_does_not_exist_is_named_at_once(tmp_path: Path) -> None:
    output = tmp_path / "not there" / "packed.tar.gz"
    fails(
        call("package-environment", "--output", str(output)),
        1,
        f"the folder {output.parent} does not exist",
        "--output",
    )


def test_a_name_by_which_spark_would_not_unpack_the_archive_is_refused() -> None:
    fails(call("package-environment", "--output", "packed.bin"), 1, "must end in .tar.gz or .tgz")
