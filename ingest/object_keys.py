"""Under which key a checkpoint is stored: no two attempts of a job ever share one."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import quote

from ingest.outbox import Origin
from schemas.messages import ATTEMPT_UNSAID, Checkpoint

NEWEST_KINDS: Final = ("best", "last", "final")
"""Kinds of which, without an epoch, the newest takes the place of the one before."""


def object_key(prefix: str, origin: Origin, checkpoint: Checkpoint, is_folder: bool) -> str:
    """Return `{prefix}/{job_id}/{attempt}/{kind}[-{epoch}]{suffix}`; of a folder, with a slash at the end.

    Where the attempt is not known to the trainer, its source, which no other process has, takes that place.
    """
    attempt = f"source-{origin.source}" if origin.attempt == ATTEMPT_UNSAID else str(origin.attempt)
    end = "/" if is_folder else quote(os.path.splitext(checkpoint.uri)[1], safe=".", errors="replace")
    name = _word(checkpoint.kind) + _count(checkpoint) + (f"-rank{origin.rank}" if origin.rank else "")
    return "/".join(part for part in (prefix, str(origin.job_id), attempt, name + end) if part)


def _count(checkpoint: Checkpoint) -> str:
    if checkpoint.epoch is not None:
        return f"-{checkpoint.epoch}"
    if checkpoint.step is not None and checkpoint.kind not in NEWEST_KINDS:
        return f"-step{checkpoint.step}"
    return ""


def _word(kind: str) -> str:
    """Return a kind so that it is one part of a key, whatever characters it has."""
    return quote(kind, safe="", errors="replace").replace(".", "%2E")
