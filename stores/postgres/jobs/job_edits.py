"""Edits of a job by people: name, tags, note and archiving. Messages of trainers do not overwrite them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import JSONB

from trainwire.schemas.tables import training_jobs
from trainwire.schemas.wire.limits import MAX_TEXT_CHARS
from trainwire.stores.postgres.jobs.user_texts import WrongText, check_text

MAX_NOTE_CHARS: Final = 10_000
MAX_TAGS: Final = 100
MAX_TAG_CHARS: Final = 200
MAX_NAME_CHARS: Final = MAX_TEXT_CHARS["name"]


class JobEdit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Changes to a job; absent fields stay unchanged.

    An empty `name` restores the trainer's name, an empty `note` deletes the note, and a tag with the value null is
    removed. `archived` hides the job in lists, or shows it again.
    """

    name: str | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET
    tags: dict[str, str | None] | msgspec.UnsetType = msgspec.UNSET
    archived: bool | msgspec.UnsetType = msgspec.UNSET


def save_edit(connection: Connection, job_id: int, edit: JobEdit) -> bool:
    """Apply an edit in the caller's transaction; return False if there is no such job.

    Raises `WrongText` for a name, note or tag that is too long or cannot be stored, and for more than MAX_TAGS
    tags.
    """
    values = _checked(edit)
    jobs = training_jobs.c
    wanted = select(jobs.given_tags).where(jobs.id == job_id)
    # Locked also without changes, so that the result is right.
    row = connection.execute(wanted.with_for_update()).one_or_none()
    if row is None:
        return False
    if edit.tags is not msgspec.UNSET:
        tags = {**(row.given_tags or {}), **edit.tags}
        _check_count(tags)
        values["given_tags"] = bindparam("tags", tags, JSONB)
    if edit.archived is not msgspec.UNSET:
        values["archived_at"] = func.coalesce(jobs.archived_at, func.now()) if edit.archived else None
    if values:
        connection.execute(update(training_jobs).where(jobs.id == job_id).values(values))
    return True


def _checked(edit: JobEdit) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if edit.name is not msgspec.UNSET:
        name = edit.name.strip()
        check_text("name", name, MAX_NAME_CHARS)
        values["given_name"] = name or None
    if edit.note is not msgspec.UNSET:
        note = edit.note.strip()
        check_text("note", note, MAX_NOTE_CHARS)
        values["note"] = note or None
    if edit.tags is not msgspec.UNSET:
        for name, value in edit.tags.items():
            if not name.strip():
                raise WrongText("tags", name, 'has no name: send for example {"team": "vision"}')
            check_text("tags", name, MAX_TAG_CHARS)
            check_text("tags", value or "", MAX_TAG_CHARS)
    return values


def _check_count(tags: Mapping[str, str | None]) -> None:
    if len(tags) > MAX_TAGS:
        raise WrongText("tags", json.dumps([*tags][-1]), f"would be tag {len(tags)}: a job has at most {MAX_TAGS}")
