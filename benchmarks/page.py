"""Writes docs/performance.md and its plots from the stored results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.contestants.contestant import CHECKOUT
from benchmarks.goals import goals, own_seconds
from benchmarks.records import (
    COLOURS,
    OURS,
    SHORT,
    TITLES,
    WARM,
    Records,
    Row,
    decimal,
    millions,
    ratio,
    table,
    times,
)

DOCS = CHECKOUT / "docs"
NOTHING = "Not measured yet."
TEXT = Path(__file__).parent / "page.txt"
"""The text of the page; each line `{{name}}` is replaced by what a function here writes."""


def write(stored: Mapping[str, Any], docs: Path = DOCS) -> None:
    """Write the page, and its plots into `images` beside it."""
    records, images = Records(stored), docs / "images"
    parts: dict[str, Callable[[Records], list[str]]] = {
        "goals": _goals,
        "hour": lambda found: _compared(found, images, "hour", "One hour"),
        "phases": _phases,
        "again": _again,
        "day": lambda found: _compared(found, images, "day", "24 hours"),
        "all": lambda found: _compared(found, images, "all", "720 hours into empty facts"),
        "history": lambda found: _history(found, images),
        "rows": _rows,
        "memory": _memory,
        "sessions": _sessions,
    }
    lines: list[str] = []
    for line in TEXT.read_text().splitlines():
        name = line.strip("{}")
        lines += parts[name](records) if line == f"{{{{{name}}}}}" else [line]
    (docs / "performance.md").write_text("\n".join(lines).rstrip() + "\n")


def _goals(records: Records) -> list[str]:
    found = sorted(goals(records), key=lambda goal: int(goal[0].partition(".")[0]))
    return table(("measure", "goal", "reached"), found, texts=2) if found else [NOTHING, ""]


def _compared(records: Records, images: Path, measure: str, title: str) -> list[str]:
    lines: list[str] = []
    for size in records.sizes(measure):
        rows = records.rows(measure, answers=size)
        floor = records.row(measure, "floor", answers=size)
        dbt = records.row(measure, "dbt", answers=size)
        of_floor = floor.median_seconds if floor else None
        of_dbt = dbt.median_seconds if dbt else None
        lines += [f"{millions(size).capitalize()} answers:", ""]
        lines += table(
            (
                "contestant",
                "start to exit",
                "\N{MULTIPLICATION SIGN} floor",
                "\N{MULTIPLICATION SIGN} dbt",
                "in the database",
                "wrong rows",
            ),
            [
                (
                    TITLES[row.contestant],
                    row.took,
                    times(ratio(row.median_seconds, of_floor)),
                    times(ratio(row.median_seconds, of_dbt)),
                    decimal(row.database_seconds, "s"),
                    row.wrong,
                )
                for row in rows
            ],
        )
        if len({row.session for row in rows}) > 1:
            lines += ["Not all of these were measured in the same run of the suite.", ""]
    if not lines:
        return [NOTHING, ""]
    size = records.sizes(measure)[-1]
    picture = f"performance-{measure}.svg"
    values = {SHORT[row.contestant]: _bar(row) for row in records.rows(measure, answers=size)}
    heading = f"{title}, {millions(size)} answers: seconds from start to exit"
    (images / picture).write_text(plots.bars(heading, values, COLOURS))
    return [*lines, f"![{heading}](images/{picture})", ""]


def _bar(row: Row) -> tuple[float, str]:
    seconds = row.median_seconds
    if row.failed:
        return 0.0, "failed"
    if seconds is None:
        return float(row.stopped_after), f"> {row.stopped_after:,.0f} s"
    return seconds, decimal(seconds, "s")


def _phases(records: Records) -> list[str]:
    body = []
    for size in records.sizes("hour"):
        rows = {name: records.row("hour", name, answers=size) for name in (OURS, WARM)}
        for name, row in rows.items():
            if row is None or row.median_seconds is None:
                continue
            phases, about = row.phase_seconds, f"{SHORT[name]}, {millions(size)} answers"
            body.append((f"{about}: start to exit", decimal(row.median_seconds, "s")))
            if name == OURS:
                body.append(("without Java's start", decimal(own_seconds(records, row), "s")))
            body += [
                *((f"phase `{phase}`", decimal(took, "s")) for phase, took in phases.items()),
                (
                    "before and after the phases: start, imports, Dagster's records, checks",
                    decimal(row.median_seconds - sum(phases.values()), "s"),
                ),
            ]
    return table(("one hour", "median"), body) if body else [NOTHING, ""]


def _again(records: Records) -> list[str]:
    body = [
        (
            TITLES[row.contestant],
            millions(size),
            decimal(row.database_seconds, "s"),
            decimal(row.again_database_seconds, "s"),
            times(ratio(row.again_database_seconds, row.database_seconds)),
            f"{sum(row.written.values()):,}",
            f"{sum(row.again_written.values()):,}",
        )
        for size in records.sizes("hour")
        for row in records.rows("hour", answers=size)
        if row.again_database_ms
    ]
    head = (
        *("contestant", "answers", "in the database", "again", "ratio"),
        *("fact rows written", "again"),
    )
    return table(head, body) if body else [NOTHING, ""]


def _history(records: Records, images: Path) -> list[str]:
    by = ("1 \N{MULTIPLICATION SIGN}", "10 \N{MULTIPLICATION SIGN}", "100 \N{MULTIPLICATION SIGN}")
    body, series = [], {}
    for name, title in TITLES.items():
        rows = [records.row("history", name, variant=variant) for variant in by]
        if not any(rows):
            continue
        whole = [row.median_seconds if row else None for row in rows]
        inside = [row.database_seconds if row else None for row in rows]
        series[SHORT[name]] = [row.fetched_rows if row else None for row in rows]
        body += [
            (
                f"{title}: {what}",
                *(decimal(value, "s") for value in values),
                times(ratio(values[-1], values[0])),
            )
            for what, values in (("start to exit", whole), ("in the database", inside))
        ]
        body.append(
            (
                f"{title}: rows fetched",
                *(
                    "\N{EN DASH}" if value is None else f"{value:,}"
                    for value in series[SHORT[name]]
                ),
                times(ratio(series[SHORT[name]][-1], series[SHORT[name]][0])),
            )
        )
    if not body:
        return [NOTHING, ""]
    sizes = [
        f"{by_how} ({millions(size)})" for by_how, size in zip(by, _pasts(records), strict=False)
    ]
    heading = "Rows fetched for the same hour, by the size of the past"
    (images / "performance-history.svg").write_text(plots.lines(heading, sizes, series, COLOURS))
    return [
        *table(("the past", *sizes, "last / first"), body),
        f"![{heading}](images/performance-history.svg)",
        "",
    ]


def _pasts(records: Records) -> list[int]:
    return sorted({row.answers for row in records.rows("history")})


def _rows(records: Records) -> list[str]:
    body = [
        (
            TITLES[row.contestant],
            {"many": "many", "large": "few, large"}[shape],
            row.variant or "with statistics, wanted indexes",
            f"{row.touched:,}",
            f"{row.fetched_base_rows:,}",
            f"{row.fetched_rows:,}",
            times(row.fetched_rows / row.touched) if row.touched else "\N{EN DASH}",
            row.wrong,
        )
        for shape in ("many", "large")
        for row in records.rows("rows", shape=shape)
        if row.seconds
    ]
    head = (
        *("contestant", "tests", "the database", "rows touched", "base rows fetched"),
        *("all rows fetched", "ratio", "wrong rows"),
    )
    sizes = [f"{millions(size)} answers:" for size in records.sizes("rows")[-1:]]
    return [*sizes, "", *table(head, body, texts=3)] if body else [NOTHING, ""]


def _memory(records: Records) -> list[str]:
    body = []
    for name, title in TITLES.items():
        for measure, what in (("hour", "one hour"), ("day", "24 hours"), ("all", "720 hours")):
            for size in records.sizes(measure):
                row = records.row(measure, name, answers=size)
                if row is not None and row.peak_gb is not None:
                    server = max(row.server_peak_bytes) / 2**30
                    body.append(
                        (
                            *(title, what, millions(size)),
                            decimal(row.peak_gb, "GB"),
                            decimal(row.service_peak_gb, "GB"),
                            decimal(server, "GB"),
                        )
                    )
    head = ("contestant", "work", "answers", "its processes", "the Spark server", "PostgreSQL")
    return table(head, body, texts=3) if body else [NOTHING, ""]


def _loads(records: Records, at: str) -> str:
    loads = records.loads(at)
    return f"{min(loads)} to {max(loads)}" if loads else "\N{EN DASH}"


def _sessions(records: Records) -> list[str]:
    return table(
        ("measured", "machine", "load average", "Python", "versions", "Java's start"),
        [
            (
                f"{at} UTC",
                f"{about['cores']} cores, {about['memory_gb']} GB, {about['system']}",
                _loads(records, at),
                about["python"],
                ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
                decimal(about["java_seconds"], "s"),
            )
            for at, about in sorted(records.sessions.items())
        ],
        texts=6,
    )
