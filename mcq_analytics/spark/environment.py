"""The archive of a Python environment for Spark's executors on machines without this package.

It holds this package and the distributions that Spark's tasks import. Spark itself stays out: the
cluster has pyspark and py4j beside its jars. venv-pack would pack these jars too, 400 MB of them,
and refuses a package that is installed as editable.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from mcq_analytics.errors import McqError
from mcq_analytics.postgres.task_errors import installed_version

PACKAGE = "mcq_analytics"
_ROOT = Path(__file__).parent.parent
IMPORTED_BY_TASKS = (
    "mcq_analytics.spark.source",
    "mcq_analytics.spark.sink",
    "mcq_analytics.spark.parts",
    "mcq_analytics.spark.task_connections",
    # These only within functions.
    "adbc_driver_postgresql.dbapi",
    "pandas",
    "psycopg2.extensions",
    "pyarrow.compute",
)
FOLDER = "environment"
"""Where executors unpack the archive, below their working directory."""
OF_THE_CLUSTER = frozenset({"pyspark", "py4j"})

_LEFT_OUT = frozenset({"__pycache__", "tests"})
_COMPRESSION = 3
"""Half the time of the usual 6, for 8 % more bytes."""
_MODE = {True: 0o755, False: 0o644}

# What Python's start imports belongs to no task.
_FIND = """
import importlib, sys
from importlib.metadata import packages_distributions
before = set(sys.modules)
sys.path.append(sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
owners = packages_distributions()
print(*sorted({owner for package in packages for owner in owners.get(package, ())}), sep="\\n")
"""


@dataclass(frozen=True)
class Packed:
    """An archive, with its size in bytes, and the interpreter that it needs.

    `python` is the interpreter's version, such as ``3.12``.
    """

    path: Path
    size: int
    python: str
    interpreter: Path


def package_environment(output: Path) -> Packed:
    """Write the archive for Spark's executors; the same packages make the same bytes.

    Its `bin/python3` is a link to the interpreter of this environment, so the machines need a
    Python at the same place. The file appears when it is complete.

    Raises:
        McqError: the folder does not exist or cannot be written to, or a distribution that tasks
            need does not list its files.

    """
    if not output.parent.is_dir():
        raise McqError(
            f"the folder {output.parent.absolute()} does not exist: create it, or give another "
            "--output"
        )
    if not output.name.endswith((".tar.gz", ".tgz")):
        raise McqError(f"{output.name} must end in .tar.gz or .tgz: Spark unpacks it by its name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                _write(stream, sorted(_entries(), key=lambda entry: entry.name))
            partial.chmod(0o644)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise McqError(
            f"{output} cannot be written ({error.strerror or error}): give another --output"
        ) from error
    return Packed(output, output.stat().st_size, _minor_version(), _interpreter())


@dataclass(frozen=True)
class _Entry:
    """A file, with its path or content, or a link to a path."""

    name: str
    content: Path | bytes | None = None
    link: str | None = None


def _write(stream: io.BufferedIOBase, entries: list[_Entry]) -> None:
    # The times, the owner and the name of the file would differ from one archive to the next.
    with (
        gzip.GzipFile("", "wb", _COMPRESSION, stream, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in entries:
            described = tarfile.TarInfo(entry.name)
            if entry.link is not None:
                described.type, described.linkname = tarfile.SYMTYPE, entry.link
                described.mode = 0o777
                archive.addfile(described)
                continue
            content = entry.content
            assert content is not None
            is_executable = isinstance(content, Path) and os.access(content, os.X_OK)
            described.mode = _MODE[is_executable]
            data = content.read_bytes() if isinstance(content, Path) else content
            described.size = len(data)
            archive.addfile(described, io.BytesIO(data))


def _entries() -> Iterator[_Entry]:
    interpreter = _interpreter()
    for name in ("python", "python3"):
        yield _Entry(f"bin/{name}", link=str(interpreter))
    number = ".".join(map(str, sys.version_info[:3]))
    yield _Entry(
        "pyvenv.cfg",
        f"home = {interpreter.parent}\n"
        "include-system-site-packages = false\n"
        f"version = {number}\n".encode(),
    )
    folder = PurePosixPath("lib") / f"python{_minor_version()}" / "site-packages"
    yield from _own_package(folder)
    for found in _distributions_of_tasks():
        yield from _distribution_files(found, folder)


def _own_package(folder: PurePosixPath) -> Iterator[_Entry]:
    """Yield the files of this package, wherever they are, and its name and version."""
    for path in _ROOT.rglob("*"):
        inside = path.relative_to(_ROOT)
        if path.is_file() and _LEFT_OUT.isdisjoint(inside.parts):
            yield _Entry(str(folder / PACKAGE / inside), path)
    number = installed_version()
    if number is not None:
        described = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {number}\n"
        yield _Entry(str(folder / f"{PACKAGE}-{number}.dist-info" / "METADATA"), described.encode())


def _distributions_of_tasks() -> list[Distribution]:
    """Return what tasks import, with all that it requires and that is installed."""
    done = subprocess.run(
        [sys.executable, "-c", _FIND, str(_ROOT.parent), *IMPORTED_BY_TASKS],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Distribution] = {}
    names = done.stdout.split()
    while names:
        name = _normalized(names.pop())
        if name in found or name in OF_THE_CLUSTER or name == _normalized(PACKAGE):
            continue
        with suppress(PackageNotFoundError):
            found[name] = distribution(name)
            names += _required(found[name])
    return [found[name] for name in sorted(found)]


def _required(found: Distribution) -> list[str]:
    """Return the names of what a distribution requires without any extra."""
    names = (
        re.match(r"[\w.-]+", requirement)
        for requirement in found.requires or ()
        if not re.search(r";.*\bextra\s*==", requirement)
    )
    return [name[0] for name in names if name is not None]


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution_files(found: Distribution, folder: PurePosixPath) -> Iterator[_Entry]:
    """Yield the files that were installed into `site-packages`, without tests and bytecode."""
    if found.files is None:
        raise McqError(
            f"the installed files of {found.metadata['Name']} are not recorded: install it with pip"
        )
    for path in found.files:
        # Scripts go to other folders, and their first lines name this environment.
        if ".." not in path.parts and _LEFT_OUT.isdisjoint(path.parts):
            yield _Entry(str(folder / path), Path(str(path.locate())))


def _interpreter() -> Path:
    """Return the interpreter itself, not that of a virtual environment."""
    return Path(sys.executable).resolve()


def _minor_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
