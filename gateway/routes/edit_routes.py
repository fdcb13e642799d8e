"""The route that changes a job's name, tags and note, and archives it."""

from __future__ import annotations

from typing import Annotated

import msgspec
import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from trainwire.gateway.auth.authorization import Identity, require
from trainwire.gateway.documents.job_documents import job_items_of
from trainwire.gateway.documents.job_types import JobItem
from trainwire.gateway.http.problems import unknown_job, wrong_value
from trainwire.gateway.http.responses import described, json_response
from trainwire.gateway.routes.parameters import JobId, ResourcesDep
from trainwire.stores.postgres.jobs.job_edits import JobEdit, save_edit
from trainwire.stores.postgres.jobs.user_texts import WrongText

log = structlog.get_logger("trainwire.gateway.edits")
router = APIRouter(tags=["jobs"])


class Edit(BaseModel):
    """Changes of a job; absent fields do not change. They override the values of the trainer, now and later.

    An empty name restores the trainer's name, an empty note deletes the note, and a tag that is null is removed.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "baseline", "tags": {"team": "vision", "old": None}}]},
    )

    name: str = ""
    note: str = ""
    tags: dict[str, str | None] = Field(default_factory=dict)
    archived: bool = False


@router.patch("/jobs/{job_id}", responses=described(JobItem, 400, 404, 413))
def edit_job(
    resources: ResourcesDep, identity: Annotated[Identity, Depends(require("admin"))], job_id: JobId, edit: Edit
) -> Response:
    """Change a job's name, tags or note, or archive it; archived jobs are listed with `archived=true` only."""
    wanted = msgspec.convert(edit.model_dump(exclude_unset=True), JobEdit)
    try:
        with resources.engine.begin() as connection:
            if not save_edit(connection, job_id, wanted):
                raise unknown_job(job_id)
            items = job_items_of(connection, [job_id])
    except WrongText as exc:
        raise wrong_value(exc.field, exc.value, exc.detail) from exc
    log.info("job.edited", job_id=job_id, token_id=identity.token_id, parts=sorted(edit.model_fields_set))
    return json_response(items[0])
