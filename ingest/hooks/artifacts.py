"""Uploads files that a training logs with MLflow to the bucket, and sends a checkpoint message for each."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainwire.ingest.process.clock import monotonic_s
from trainwire.ingest.sanitize import plain_text
from trainwire.ingest.settings.environment import absolute_path
from trainwire.ingest.settings.trainer_settings import TrainerSettings
from trainwire.ingest.uploads.checkpoint import location
from trainwire.ingest.uploads.snapshots import SnapshotFolder
from trainwire.ingest.uploads.uploads import Uploads
from trainwire.schemas.checkpoint_keys import ARTIFACT, MODEL
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.schemas.wire.messages import Checkpoint

if TYPE_CHECKING:
    from trainwire.ingest.run import Run

FOLDER_VARIABLE: Final = "TRAINWIRE_ARTIFACTS"
"""Environment variable with the path of the artifact folder.

The training process puts the files to upload into it, as hard links; the launcher deletes it at the end.
"""
_POLL_S: Final = 0.05
_LAST_S: Final = 1.0
_SHOWN: Final = 3
_MOST_CHARS: Final = MAX_TEXT_CHARS["kind"]
_HASH_CHARS: Final = 12


class ArtifactUploads:
    """Uploads the files that a command under `trainwire run` logs with MLflow, in the background; thread-safe."""

    def __init__(self, run: Run, settings: TrainerSettings, fallback: Path | None) -> None:
        """Create the artifact folder in the checkpoint spool, or else in `fallback`.

        If no checkpoint spool is configured, the working folder is tried in its place. Raises `OSError` if neither
        folder is writable.
        """
        self._run = run
        self._timeout_s = settings.checkpoints.finish_s
        self._lock = threading.Lock()
        self._uploaded = 0
        self._failed: Counter[str] = Counter()
        self._folder = _folder_in([settings.checkpoints.spool or absolute_path("."), fallback])
        self._uploads = Uploads(settings, run.origin, self._report, can_upload=True)

    def environment(self) -> dict[str, str]:
        """Return the environment variable that gives the hooks in the training the path of the artifact folder."""
        return {FOLDER_VARIABLE: str(self._folder.path)}

    def take(self, record: Mapping[str, Any], rank: int | None) -> None:
        """Queue the file or folder in `record`, which the training has logged with MLflow, for upload.

        `record["snapshot"]` is the name of a copy in the artifact folder. If there is no copy, add a checkpoint
        message without an upload, with `record["error"]` as the reason.
        """
        prefix = (MODEL if record.get("is_model") else ARTIFACT) + (f"rank_{rank}/" if rank else "")
        uri = location(str(record["path"]))
        described = Checkpoint(
            ts=time.time_ns(),
            kind=_kind(prefix + plain_text(record["name"])),
            uri=uri,
            size_bytes=int(record["size"]),
        )
        snapshot = record.get("snapshot")
        if snapshot is None:
            self._report(msgspec.structs.replace(described, upload_error=str(record.get("error"))))
        else:
            self._uploads.take(described, "auto", self._folder.path / os.path.basename(str(snapshot)))

    def close(self, is_interrupted: Callable[[], bool]) -> None:
        """Wait for the uploads, then delete the artifact folder.

        The wait ends after `checkpoints.finish_s` seconds (a setting), or when `is_interrupted()` returns True;
        uploads that are not complete by then get one more second.
        """
        deadline_s = monotonic_s() + self._timeout_s
        while not self._uploads.is_idle and monotonic_s() < deadline_s and not is_interrupted():
            time.sleep(_POLL_S)
        self._uploads.finish(_LAST_S)
        self._folder.remove()

    def sentence(self) -> str | None:
        """Return as text the number of uploaded files and the three most frequent errors; None without files."""
        with self._lock:
            parts = [f"uploaded: {_files(self._uploaded)}"] if self._uploaded else []
            parts += [f"not uploaded: {_files(count)} ({why})" for why, count in self._failed.most_common(_SHOWN)]
            rest = sum(self._failed.values()) - sum(count for _, count in self._failed.most_common(_SHOWN))
        return "; ".join([*parts, *([f"not uploaded: {rest:,} more"] if rest else [])]) or None

    def _report(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            if checkpoint.upload_error is None:
                self._uploaded += 1
            else:
                self._failed[checkpoint.upload_error.replace(checkpoint.uri, "it")] += 1
        self._run.record_checkpoint(checkpoint)


def _kind(name: str) -> str:
    """Return `name`, shortened if it is too long, for the field `kind` of a checkpoint message.

    A shortened name ends in a hash of the name, because two files must not have the same kind: a newer checkpoint
    replaces an older one of the same kind.
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_HASH_CHARS]
    return name if len(name) <= _MOST_CHARS else f"{name[: _MOST_CHARS - _HASH_CHARS - 1]}-{digest}"


def _folder_in(parents: list[Path | None]) -> SnapshotFolder:
    error: OSError | None = None
    for parent in filter(None, parents):
        try:
            return SnapshotFolder(parent)
        except OSError as exc:
            error = error or exc
    raise error or OSError("no folder for the files to upload")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
