"""Decodes records of W&B: their kinds, the run, its config and times (`wandb/proto/wandb_internal.proto`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.readers.wandb_file import wandb_records
from trainwire.cli.transfer.readers.wandb_values import item_of, json_value, text_of
from trainwire.cli.transfer.runs import MAX_NS
from trainwire.ingest.hooks.protobuf import fields
from trainwire.ingest.provenance.masking import masked_fields

HISTORY, SUMMARY, OUTPUT, CONFIG, FILES, STATS, ARTIFACT, ALERT, OUTPUT_RAW, RUN, EXIT = (
    *(2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 18),
)
"""Fields of `wandb_internal.Record`."""
_KINDS: Final = frozenset({HISTORY, SUMMARY, CONFIG, FILES, STATS, ARTIFACT, ALERT, OUTPUT, OUTPUT_RAW, RUN, EXIT})
_RUN_KEY, _EXIT_KEY = b"\x8a\x01", b"\x92\x01"
"""The bytes before the content of the fields RUN and EXIT: the number of the field, and that it has a length."""
_TAGS: Final = {2: "entity", 3: "project", 6: "group", 7: "job_type", 9: "notes", 12: "sweep"}
"""Fields of `wandb_internal.RunRecord` that become tags."""


def needed_records(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of the records that an import needs."""
    for record in wandb_records(path, size):
        for field in fields(record):
            if field[0] in _KINDS:
                yield field
                break


def runs_and_exits(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield kind and content of the records of the kinds RUN and EXIT."""
    for record in wandb_records(path, size):
        if _RUN_KEY in record or _EXIT_KEY in record:
            yield from (field for field in fields(record) if field[0] in {RUN, EXIT})


@dataclass
class About:
    """The first record of a run; later ones have changed names, notes and tags."""

    identity: str
    name: str
    started_ns: int | None
    tags: dict[str, Any]
    params: dict[str, Any]


def about_of(record: bytes, before: About | None) -> About:
    """Return the content of a run record; `before` is that of the first one of the run."""
    texts: dict[int, str] = {}
    labels: list[str] = []
    params: dict[str, Any] = {}
    started_ns = None
    for number, value in fields(record):
        if number in {1, 8, *_TAGS}:
            texts[number] = text_of(value)
        elif number == 4:
            params = config_of(value)
        elif number == 10:
            labels.append(text_of(value))
        elif number == 17:
            started_ns = checked_time(timestamp_ns(value))
    run_id = texts.get(1, "")
    tags = {f"wandb.{name}": texts[number] for number, name in _TAGS.items() if texts.get(number)}
    if labels:
        tags["wandb.tags"] = ", ".join(labels)
    tags["imported_from"] = f"wandb run {run_id}"
    name = texts.get(8) or run_id or "run"
    if before is not None:
        return replace(before, name=name, tags=tags)
    identity = hashlib.blake2b(record, digest_size=16).hexdigest()
    return About(identity, name, started_ns, tags, masked_fields(params))


def config_of(record: bytes) -> dict[str, Any]:
    """Return the parameters that a config record sets; those of W&B itself are left out."""
    items = [item_of(value) for number, value in fields(record) if number == 1]
    return {".".join(names): json_value(raw) for names, raw in items if names[0] != "_wandb"}


def timestamp_ns(data: bytes) -> int:
    """Return a `google.protobuf.Timestamp` in nanoseconds."""
    parts = dict(fields(data))
    return int(parts.get(1, 0)) * 10**9 + int(parts.get(2, 0))


def checked_time(ts: int) -> int | None:
    """Return a time that can be stored, None for any other."""
    return ts if 0 <= ts <= MAX_NS else None
