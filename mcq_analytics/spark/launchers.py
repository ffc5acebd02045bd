"""Small shell scripts through which Spark starts Java and its Python workers."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

_PYTHON = """#!/bin/sh
given=$PYTHONPATH
PYTHONPATH=
IFS=:
for entry in $given; do
  case $entry in
    */pyspark.zip | */py4j-*-src.zip) ;;
    *) PYTHONPATH=${{PYTHONPATH:+$PYTHONPATH:}}$entry ;;
  esac
done
export PYTHONPATH
exec {python} "$@"
"""


def python_launcher(home: Path, name: str = "python") -> Path:
    """Return a launcher for the Python workers of this machine; they use the installed pyspark.

    By default Spark puts its zipped pyspark first on the path. The zip has no bytecode, and each of
    the four Pythons that a first query starts would compile it for more than a second.
    """
    launcher = home / "python" / "bin" / name
    write_launcher(launcher, _PYTHON.format(python=shlex.quote(sys.executable)))
    return launcher


def write_launcher(launcher: Path, script: str) -> None:
    """Write an executable script atomically, unless it is there already."""
    if launcher.exists() and launcher.read_text() == script:
        return
    launcher.parent.mkdir(parents=True, exist_ok=True)
    partial = launcher.with_suffix(f".{os.getpid()}")
    partial.write_text(script)
    partial.chmod(0o755)
    partial.replace(launcher)
