"""The raw results in `results.json`: a run of the suite replaces those that it measures again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from benchmarks.runs import Result

FILE = Path(__file__).parent / "results.json"

Record = dict[str, Any]


def read(file: Path = FILE) -> dict[str, Any]:
    """Return the results so far."""
    if not file.exists():
        return {"sessions": {}, "results": []}
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def session(versions: Mapping[str, str], java_seconds: float | None) -> Record:
    """Describe this run of the suite: when, where, and with which versions."""
    return {
        "at": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": dict(versions),
        "java_seconds": java_seconds,
    }


def add(results: Sequence[Result], about: Record, file: Path = FILE) -> dict[str, Any]:
    """Store results in place of older ones of the same case and contestant; return them all."""
    found = read(file)
    new = [{**asdict(result), "session": about["at"]} for result in results]
    replaced = {_key(record) for record in new}
    kept = [record for record in found["results"] if _key(record) not in replaced]
    records = sorted([*kept, *new], key=_key)
    used = {record["session"] for record in records}
    sessions = {**found["sessions"], about["at"]: about}
    stored = {
        "sessions": {at: known for at, known in sessions.items() if at in used},
        "results": records,
    }
    file.write_text(json.dumps(stored, indent=1) + "\n")
    return stored


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        record[name] for name in ("measure", "shape", "answers", "dataset", "variant", "contestant")
    )
