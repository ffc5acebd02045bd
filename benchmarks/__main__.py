"""Compares this project with its peers: `make bench`, or `python -m benchmarks`.

It starts a PostgreSQL server of its own, installs the peers under `.bench`, and writes
`benchmarks/results.json` and `docs/performance.md`. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby, product

from benchmarks import page, results
from benchmarks.contestants.contestant import Contestant, Work, working
from benchmarks.contestants.dbt import Dbt
from benchmarks.contestants.ours import Ours, WarmOurs
from benchmarks.contestants.plain_sql import Floor, Increment
from benchmarks.contestants.sqlmesh import SqlMesh
from benchmarks.datasets import load
from benchmarks.expected import Expected
from benchmarks.measures import MEASURES, cases
from benchmarks.runs import Result, Runner, States

CONTESTANTS: dict[str, type[Contestant]] = {
    kind.name: kind for kind in (Floor, Increment, Dbt, SqlMesh, Ours, WarmOurs)
}
MANY_STATES = 2_000_000
"""Answers: of larger datasets only one contestant's states are kept, several GB each. So these
contestants are measured one after the other, not side by side."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--answers",
        nargs="+",
        type=int,
        default=[200_000, 2_000_000],
        help="numbers of answers [default: 200000 2000000]; 10000000 takes hours",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        help="; ".join(f"{name}: {meaning}" for name, meaning in MEASURES.items()),
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--without", nargs="+", choices=CONTESTANTS, default=[])
    parser.add_argument("--runs", type=int, default=3, help="runs of each [default: 3]")
    parser.add_argument(
        "--timeout", type=float, default=360.0, help="seconds for each run [default: 360]"
    )
    parser.add_argument(
        "--page-only", action="store_true", help="measure nothing; write the page again"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.page_only:
        page.write(results.read())
        return
    with working("run") as work:
        _measure(options, work)


def _measure(options: argparse.Namespace, work: Work) -> None:
    server = work.server
    chosen = [
        kind(work)
        for name, kind in CONTESTANTS.items()
        if name in options.contestants and name not in options.without
    ]
    versions = {"PostgreSQL": server.version()}
    for contestant in chosen:
        versions |= contestant.install()
    ours = Ours(work)
    versions |= ours.install()
    ours.make_empty()
    java = ours.java_seconds(3) if any(isinstance(one, Ours) for one in chosen) else None
    about = results.session(versions, java)
    failed = []
    for found in _results(options, work, chosen):
        page.write(results.add([found], about))
        if found.failed or any(found.wrong_rows):
            failed.append(found.line())
    if failed:
        sys.exit("failed, or rows wrong:\n" + "\n".join(failed))


def _results(
    options: argparse.Namespace, work: Work, chosen: Sequence[Contestant]
) -> Iterator[Result]:
    server, states = work.server, States(work.server)
    runner = Runner(
        server, states, Expected(server, work.folder / "expected"), options.runs, options.timeout
    )
    for dataset, together in groupby(
        cases(options.only, options.answers), lambda case: case.dataset
    ):
        load(server, dataset)
        print(f"loaded {dataset.name}", flush=True)
        pairs = list(product(together, chosen))
        if dataset.answers > MANY_STATES:
            pairs.sort(key=lambda pair: chosen.index(pair[1]))
        for case, contestant in pairs:
            if dataset.answers > MANY_STATES:
                states.forget(all_but=contestant)
            if contestant.name not in case.without:
                yield runner.measure(case, contestant)
        states.forget()
        server.drop(dataset.name)


if __name__ == "__main__":
    main()
