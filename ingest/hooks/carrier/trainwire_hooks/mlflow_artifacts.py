"""Keeps the files that a training logs with MLflow, in `mlruns` below its folder, and reports where."""

from __future__ import annotations

import os
from typing import Any

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from . import channel


class RecordedArtifacts(LocalArtifactRepository):
    """MLflow's own repository of a local folder, whose uploads are lines in the job's log."""

    def __init__(self, artifact_uri: str) -> None:
        super().__init__(artifact_uri.partition(":")[2])
        self.artifact_uri = artifact_uri

    def log_artifact(self, local_file: Any, artifact_path: str | None = None) -> None:
        """Keep a file."""
        super().log_artifact(local_file, artifact_path)
        path = os.path.join(self.artifact_dir, artifact_path or "", os.path.basename(local_file))
        _report(path, f"{os.path.getsize(local_file):,} bytes")

    def log_artifacts(self, local_dir: Any, artifact_path: str | None = None) -> None:
        """Keep the files of a folder."""
        super().log_artifacts(local_dir, artifact_path)
        count = sum(len(files) for _, _, files in os.walk(local_dir))
        _report(os.path.join(self.artifact_dir, artifact_path or "."), f"{count:,} files")


def _report(path: str, size: str) -> None:
    text = f"file recorded: {os.path.normpath(path)} ({size})"
    channel.send({"type": "log", "by": "mlflow", "text": text})
