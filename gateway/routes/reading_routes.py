"""Routes of the Python client: jobs by name, and all metrics of a job as packed columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from trainwire.gateway.documents.job_types import JobReference, JobReferences
from trainwire.gateway.documents.response_types import document_from
from trainwire.gateway.http.responses import described, described_problems, json_response, streamed
from trainwire.gateway.resources import Resources, job_or_404
from trainwire.gateway.routes.parameters import VIEWER, JobId, Names, ResourcesDep, Text
from trainwire.schemas.metric_download import MEDIA_TYPE, MetricBlock, encode_frame, split_names
from trainwire.stores.postgres.jobs.job_lookup import removed_rows
from trainwire.stores.postgres.jobs.job_references import find_referenced
from trainwire.stores.rows.packed_metrics import read_packed_metrics

router = APIRouter(tags=["jobs"], dependencies=VIEWER)


@router.get("/jobs/resolve", responses=described(JobReferences))
def resolve(
    resources: ResourcesDep,
    reference: Annotated[
        Text,
        Query(description="A number, a name, the beginning of either, the last digits of a number, or `last`."),
    ],
) -> Response:
    """Return the newest 10 jobs that match `reference`, and the number of all matching jobs."""
    with resources.reading() as connection:
        found = find_referenced(connection, reference)
    items = [document_from(JobReference, job) for job in found.jobs]
    return json_response(document_from(JobReferences, found, items=items))


@router.get(
    "/jobs/{job_id}/metrics/download",
    response_class=Response,
    responses={
        200: {
            "description": "All points of these metrics, as packed columns (docs/client.md).",
            "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        },
        **described_problems(404),
    },
)
def download_metrics(resources: ResourcesDep, job_id: JobId, names: Names = []) -> Response:  # noqa: B006
    """Return all points of the metrics in `names` (by default of all) as packed columns, not downsampled."""
    with resources.reading() as connection:
        last = job_or_404(connection, job_id).last_metric_seq
        removed = removed_rows(connection, job_id)["metrics"]
    return streamed(_frames(resources, job_id, split_names(names), removed, last), MEDIA_TYPE)


def _frames(resources: Resources, job_id: int, names: Sequence[str], after: int, last: int) -> Iterator[bytes]:
    for block in read_packed_metrics(resources.engine, job_id, names, after, last):
        yield encode_frame(block)
    yield encode_frame(MetricBlock(rows=0))
