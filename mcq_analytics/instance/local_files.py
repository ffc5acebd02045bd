"""Where Dagster keeps artifacts and the output of steps: under MCQ_HOME. For `dagster.yaml`."""

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


def dagster_folder() -> Path:
    """Return the folder for Dagster's files."""
    return load_settings().home / "dagster"


class Artifacts(LocalArtifactStorage):
    """Dagster's artifacts, in a folder that the settings choose."""

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(str(dagster_folder()), inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """Return the schema of its configuration in `dagster.yaml`: there is none."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Artifacts:
        """Return the storage, in the folder that the settings choose."""
        return cls(inst_data)


class ComputeLogs(LocalComputeLogManager):
    """Writes the output of each step to files, which the UI shows.

    A run that a code server started prints nowhere else. By default Dagster starts four processes
    per step that copy the output to that of the code server. They mix it into the server's own
    messages, and stay behind if the run is killed.
    """

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(str(dagster_folder() / "compute_logs"), inst_data=inst_data)

    @classmethod
    def config_type(cls) -> Any:
        """Return the schema of its configuration in `dagster.yaml`: there is none."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> ComputeLogs:
        """Return the manager, for the folder that the settings choose."""
        return cls(inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        """Redirect standard output and error to the files of a step."""
        if multiprocessing.parent_process() is None:
            # In a command, the output also goes to the terminal.
            with super().capture_logs(log_key) as context:
                yield context
            return
        out, err = (Path(self.get_captured_local_path(log_key, name)) for name in ("out", "err"))
        out.parent.mkdir(parents=True, exist_ok=True)
        with redirect_to_file(sys.stdout, out), redirect_to_file(sys.stderr, err):
            yield CapturedLogContext(log_key)
        # Tells readers that the output is complete.
        out.with_suffix(".complete").touch()
