"""MLflow artifact repository that stores files in `mlruns` below the working folder and logs their paths."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from . import channel, mlflow_store

FOLDER_VARIABLE = "TRAINWIRE_ARTIFACTS"
"""Environment variable with the path of the artifact folder, from which the launcher uploads files.

Without it no file is uploaded.
"""
CONTENT = "content"
MAX_FILES = 10_000
"""Maximum number of files in an uploaded folder; the same limit holds for checkpoints."""
SPARE_COPIES = 2
"""A file that cannot be hard-linked is copied only if the disk has free space for this many copies."""
Fields = dict[str, Any]


class RecordedArtifacts(LocalArtifactRepository):
    """MLflow's artifact repository for local folders, which also logs the path of each stored file or folder.

    If `FOLDER_VARIABLE` is set, the launcher also uploads the files to the bucket.
    """

    def __init__(self, artifact_uri: str) -> None:
        super().__init__(artifact_uri.partition(":")[2])
        self.artifact_uri = artifact_uri

    def log_artifact(self, local_file: Any, artifact_path: str | None = None) -> None:
        """Store a file below `artifact_path`, log its path to the job, and have it uploaded if this is enabled."""
        name = os.path.basename(local_file)
        path = os.path.join(self.artifact_dir, artifact_path or "", name)
        _unlink_old(local_file, path)
        super().log_artifact(local_file, artifact_path)
        _report(path, f"{os.path.getsize(local_file):,} bytes")
        self._upload(path, artifact_path, name, [""])

    def log_artifacts(self, local_dir: Any, artifact_path: str | None = None) -> None:
        """Store a folder's files below `artifact_path`, log the path, and have them uploaded if enabled."""
        path = os.path.join(self.artifact_dir, artifact_path or ".")
        names = [
            os.path.relpath(os.path.join(folder, file), local_dir)
            for folder, _, files in os.walk(local_dir)
            for file in files
        ]
        for name in names:
            _unlink_old(os.path.join(local_dir, name), os.path.join(path, name))
        super().log_artifacts(local_dir, artifact_path)
        _report(path, f"{len(names):,} files")
        if names:
            self._upload(path, artifact_path, "", names)

    def _upload(self, path: str, artifact_path: str | None, name: str, names: list[str]) -> None:
        """Make the launcher upload the file at `path`, or the files `names` in the folder `path`; never raises.

        Do nothing if `FOLDER_VARIABLE` is not set.
        """
        root = os.environ.get(FOLDER_VARIABLE)
        if not root:
            return
        try:
            path = os.path.normpath(path)
            place = mlflow_store.place_of_files(self.artifact_dir)
            record: Fields = {
                "type": "artifact",
                "by": "mlflow",
                "path": path,
                "name": os.path.normpath(os.path.join(place, artifact_path or "", name)),
                "is_model": not name and "MLmodel" in names,
                "size": sum(os.path.getsize(_joined(path, each)) for each in names),
            }
            channel.send({**record, **_snapshot(path, names, record["size"], root)})
        except Exception as exc:  # noqa: BLE001 - an upload is worth less than the training
            failed = {"path": path, "name": name or artifact_path or ".", "size": 0, "error": str(exc)}
            channel.send({"type": "artifact", "by": "mlflow", **failed})


def _snapshot(path: str, names: list[str], size: int, root: str) -> Fields:
    """Hard-link (or copy) the files into a new folder in `root`, so that later changes do not affect the upload.

    Return a dict with the name of the new folder as `snapshot`, or with the reason for a failure as `error`.
    """
    if len(names) > MAX_FILES:
        return {"error": f"it has {len(names):,} files, and at most {MAX_FILES:,} are uploaded"}
    folder = tempfile.mkdtemp(dir=root)
    try:
        for name in names:
            source, target = os.path.realpath(_joined(path, name)), _joined(os.path.join(folder, CONTENT), name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without links
                if shutil.disk_usage(folder).free < SPARE_COPIES * size:
                    raise
                shutil.copy2(source, target)
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)
        return {"error": f"its snapshot could not be taken: {exc.strerror or exc}"}
    return {"snapshot": os.path.basename(folder)}


def _joined(path: str, name: str) -> str:
    return os.path.join(path, name) if name else path


def _unlink_old(source: Any, target: str) -> None:
    """Delete the file `target` before MLflow overwrites it.

    The hard link that the launcher is still to upload then keeps the old content.
    """
    try:
        if os.environ.get(FOLDER_VARIABLE) and os.path.isfile(source) and not os.path.samefile(source, target):
            os.unlink(target)
    except OSError:  # there is none
        pass


def _report(path: str, size: str) -> None:
    text = f"file recorded: {os.path.normpath(path)} ({size})"
    channel.send({"type": "log", "by": "mlflow", "text": text})
