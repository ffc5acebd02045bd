"""A running `dagster dev` (webserver, daemon, code server), used through its GraphQL API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcq_analytics.definitions.build import FACTS_JOB
from mcq_analytics.model.facts import FACTS
from mcq_analytics_tests.servers import CHECKOUT, free_port

LAUNCH = """
mutation($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""

WHOLE_RUN = """
query($id: ID!) {
  runOrError(runId: $id) { ... on Run { status tags { key value } } }
  logsForRun(runId: $id) { ... on EventConnection { events {
    __typename ... on MessageEvent { timestamp message }
  } } }
}
"""

SERVE = """
from mcq_analytics.launching import ui
from mcq_analytics.settings import load_settings
ui.serve(load_settings(), "127.0.0.1", {port})
"""


class Ui:
    """The GraphQL API of a UI."""

    def __init__(self, port: int, log: Path) -> None:
        self.log = log
        self.port = port
        self._url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(  # noqa: S310
            self._url, body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                found = json.load(answer)
        except urllib.error.HTTPError as refusal:
            pytest.fail(refusal.read().decode())
        assert "errors" not in found, found
        return found["data"]

    def is_ready(self) -> bool:
        try:
            answer = self.ask(
                "{ workspaceOrError { ... on Workspace { locationEntries { loadStatus "
                "locationOrLoadError { __typename } } } } }"
            )
        except OSError:
            return False
        entries = answer["workspaceOrError"]["locationEntries"]
        return [entry["loadStatus"] for entry in entries] == ["LOADED"]

    def launch(self, tags: dict[str, str]) -> str:
        """Start a run of the facts with these tags, and return its id."""
        answer = self.launch_answer(tags)
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def launch_answer(self, tags: dict[str, str]) -> dict[str, Any]:
        """Request a run of the facts with these tags, and return the answer."""
        answer: dict[str, Any] = self.ask(
            LAUNCH,
            params={
                "selector": {
                    "repositoryLocationName": "mcq_analytics",
                    "repositoryName": "__repository__",
                    "pipelineName": FACTS_JOB,
                    "assetSelection": [{"path": [fact.name]} for fact in FACTS],
                },
                "mode": "default",
                "runConfigData": {},
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in tags.items()]
                },
            },
        )["launchPipelineExecution"]
        return answer

    def wait_for_run(self, run_id: str, seconds: int = 120) -> str:
        for _ in range(2 * seconds):
            answer = self.ask(
                "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id
            )
            status = str(answer["runOrError"]["status"])
            if status in ("SUCCESS", "FAILURE", "CANCELED"):
                return status
            time.sleep(0.5)
        found = self.ask(WHOLE_RUN, id=run_id)
        pytest.fail(f"the run has not ended: {found}\n{self.log.read_text()}")


@contextmanager
def dagster_dev(directory: Path) -> Iterator[Ui]:
    """Open the UI as `demo` does, in a job that ignores interrupts; end it with all processes."""
    port = free_port()
    log = directory / "dagster_dev.log"
    shutil.copy(CHECKOUT / "workspace.yaml", directory)
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *("sh", "-c", 'trap "" INT; exec "$@"', "sh"),
                *(sys.executable, "-c"),
                SERVE.format(port=port),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            cwd=directory,
        )
    found = Ui(port, log)
    try:
        for _ in range(240):
            if found.is_ready():
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield found
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _, alive = psutil.wait_procs(started, timeout=30)
        for left in alive:
            left.kill()
        assert alive == []
