"""Decodes W&B records: their kind, and the run's description, config and times.

The format is defined in `wandb/proto/wandb_internal.proto`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trainwire.cli.transfer.readers.wandb_file import wandb_records
from trainwire.cli.transfer.readers.wandb_values import item_of, json_value, text_of
from trainwire.cli.transfer.runs import MAX_NS
from trainwire.ingest.hooks.protobuf import BYTES, fields
from trainwire.ingest.provenance.masking import masked_fields

HISTORY, SUMMARY, OUTPUT, CONFIG, FILES, STATS, ARTIFACT, ALERT, OUTPUT_RAW, RUN, EXIT = (
    *(2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 18),
)
"""Field numbers of `wandb_internal.Record`, which give the kind of a record."""
_KINDS: Final = frozenset({HISTORY, SUMMARY, CONFIG, FILES, STATS, ARTIFACT, ALERT, OUTPUT, OUTPUT_RAW, RUN, EXIT})
_TAGS: Final = {2: "entity", 3: "project", 6: "group", 7: "job_type", 9: "notes", 12: "sweep"}
"""Field number in `wandb_internal.RunRecord` -> name of the tag, for the fields that become tags."""


def needed_field(record: bytes) -> tuple[int, Any] | None:
    """Return (kind, content) of a record; None if an import does not use records of its kind."""
    return next((field for field in fields(record) if field[0] in _KINDS), None)


def records_of_kind(path: Path, size: int, kind: int) -> Iterator[bytes]:
    """Yield the content of the records of a kind above 15 in the first `size` bytes of a file.

    Damage is only found in the blocks where these records may be.
    """
    key = bytes((kind << 3 & 0x7F | 0x80 | BYTES, kind >> 4))  # the protobuf key: field number and wire type

    def may_have(data: bytes) -> bool:
        return key in data

    for record in wandb_records(path, size, may_have):
        if key in record:
            yield from (value for number, value in fields(record) if number == kind)


@dataclass
class About:
    """The description of a W&B run, from its first run record; name and tags are those of its last one."""

    identity: str
    name: str
    started_ns: int | None
    tags: dict[str, Any]
    params: dict[str, Any]


def about_of(record: bytes, before: About | None) -> About:
    """Decode a run record; `before` is the description from the run's earlier records, or None."""
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
    """Return the parameters that a config record sets, without W&B's internal ones."""
    items = [item_of(value) for number, value in fields(record) if number == 1]
    return {".".join(names): json_value(raw) for names, raw in items if names[0] != "_wandb"}


def timestamp_ns(data: bytes) -> int:
    """Decode a `google.protobuf.Timestamp` as nanoseconds since 1970."""
    parts = dict(fields(data))
    return int(parts.get(1, 0)) * 10**9 + int(parts.get(2, 0))


def checked_time(ts: int) -> int | None:
    """Return `ts` if it can be stored, else None."""
    return ts if 0 <= ts <= MAX_NS else None
