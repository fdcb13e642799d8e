"""Stores the files that a training logs with MLflow in `mlruns` below its folder, and logs their paths."""

from __future__ import annotations

import os
from typing import Any

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from . import channel


class RecordedArtifacts(LocalArtifactRepository):
    """MLflow's repository for local folders, which also writes a line to the job's log for each upload."""

    def __init__(self, artifact_uri: str) -> None:
        super().__init__(artifact_uri.partition(":")[2])
        self.artifact_uri = artifact_uri

    def log_artifact(self, local_file: Any, artifact_path: str | None = None) -> None:
        """Store a file, and log its path."""
        super().log_artifact(local_file, artifact_path)
        path = os.path.join(self.artifact_dir, artifact_path or "", os.path.basename(local_file))
        _report(path, f"{os.path.getsize(local_file):,} bytes")

    def log_artifacts(self, local_dir: Any, artifact_path: str | None = None) -> None:
        """Store the files of a folder, and log its path."""
        super().log_artifacts(local_dir, artifact_path)
        count = sum(len(files) for _, _, files in os.walk(local_dir))
        _report(os.path.join(self.artifact_dir, artifact_path or "."), f"{count:,} files")


def _report(path: str, size: str) -> None:
    text = f"file recorded: {os.path.normpath(path)} ({size})"
    channel.send({"type": "log", "by": "mlflow", "text": text})
