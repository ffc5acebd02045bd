"""Where Dagster keeps files: under MCQ_HOME. `dagster.yaml` names the classes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage

from mcq_analytics.settings import load_settings


def folder() -> Path:
    """Return the folder of Dagster's files."""
    return load_settings().home / "dagster"


class Artifacts(LocalArtifactStorage):
    """Dagster's folder for artifacts."""

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(str(folder()), inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration that `dagster.yaml` may hold: none."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Artifacts:
        """Return the artifacts of the settings' folder."""
        return cls(inst_data)


class ComputeLogs(LocalComputeLogManager):
    """What steps print, a file each, as the UI shows it.

    A run that a code server has started prints nowhere else: Dagster would start four processes
    for each step that copy it to the code server's own output, line by line among its messages,
    and that stay when the run is killed together with those that watch it.
    """

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(str(folder() / "compute_logs"), inst_data=inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """Return the configuration that `dagster.yaml` may hold: none."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> ComputeLogs:
        """Return the logs in the settings' folder."""
        return cls(inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Write what is printed meanwhile to the files of a step."""
        if multiprocessing.parent_process() is None:
            # A command: who called it sees all of it.
            with super().capture_logs(log_key) as context:
                yield context
            return
        out, err = (Path(self.get_captured_local_path(log_key, name)) for name in ("out", "err"))
        out.parent.mkdir(parents=True, exist_ok=True)
        with redirect_to_file(sys.stdout, out), redirect_to_file(sys.stderr, err):
            yield CapturedLogContext(log_key)
        # By this file others know that no more will come.
        out.with_suffix(".complete").touch()
