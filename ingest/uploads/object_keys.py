"""The key under which a checkpoint is uploaded: every upload has a folder of its own, none is overwritten."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import quote

from trainwire.ingest.origin import Origin
from trainwire.schemas.checkpoint_keys import NEWEST_KINDS, new_upload_folder
from trainwire.schemas.messages import ATTEMPT_UNKNOWN, Checkpoint


class Slot(NamedTuple):
    """What a checkpoint and the one that supersedes it have in common, within one source."""

    kind: str
    epoch: int | None
    step: int | None
    ending: str


def slot_of(checkpoint: Checkpoint, is_folder: bool) -> Slot:
    """Return the slot of a checkpoint: an upload that waits is dropped when a newer one in its slot arrives.

    Of the kinds `best`, `last` and `final` a newer step takes the place of the one before. Retention removes
    superseded uploads by the same rule (`trainwire.workers.checkpoints.surplus`).
    """
    step = None if checkpoint.kind in NEWEST_KINDS else checkpoint.step
    return Slot(checkpoint.kind, checkpoint.epoch, step, _ending(checkpoint, is_folder))


def object_key(prefix: str, origin: Origin, checkpoint: Checkpoint, is_folder: bool) -> str:
    """Return `{prefix}/{job_id}/{attempt}/{upload}/{kind}[-{epoch}][-step{step}][-rank{rank}]{suffix}`.

    `upload` is new for each call, so that a key is never used twice. The key of a folder ends with a slash. Where
    the attempt is not known to the trainer, its source, which no other process has, takes that place.
    """
    attempt = f"source-{origin.source}" if origin.attempt == ATTEMPT_UNKNOWN else str(origin.attempt)
    counts = (("-", checkpoint.epoch), ("-step", checkpoint.step), ("-rank", origin.rank or None))
    name = _word(checkpoint.kind) + "".join(f"{word}{count}" for word, count in counts if count is not None)
    folders = (prefix, str(origin.job_id), attempt, new_upload_folder(checkpoint.ts))
    return "/".join(part for part in (*folders, name + _ending(checkpoint, is_folder)) if part)


def _ending(checkpoint: Checkpoint, is_folder: bool) -> str:
    return "/" if is_folder else quote(os.path.splitext(checkpoint.uri)[1], safe=".", errors="replace")


def _word(kind: str) -> str:
    """Return a kind so that it is one part of a key, whatever characters it has."""
    return quote(kind, safe="", errors="replace").replace(".", "%2E")
