"""The data of `trainwire status` about one job, read from Postgres or through a gateway."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection

from trainwire.cli.gateway_jobs import GatewayJobs
from trainwire.cli.gateway_reads import GatewayReads
from trainwire.schemas.non_finite import Number
from trainwire.stores.postgres.checkpoints import CheckpointFile, find_problems, last_checkpoint
from trainwire.stores.postgres.completeness import find_completeness
from trainwire.stores.postgres.deliveries import JobDelivery, SinkHealth, job_deliveries
from trainwire.stores.postgres.jobs.attempts import find_attempts, find_provenance, renaming
from trainwire.stores.postgres.jobs.job_lookup import Job
from trainwire.stores.rows.sparklines import LAST_ROWS, last_values


class StatusReport(NamedTuple):
    """One job with the rows and messages that belong to it.

    `halted` maps each stream whose drain has stopped to the reason; it is None if this is not known.
    """

    job: Job
    last_metrics: dict[str, Number]
    checkpoint: str | None
    completeness: dict[str, Any]
    deliveries: dict[str, tuple[JobDelivery, SinkHealth]]
    problems: list[CheckpointFile]
    warning: str | None
    provenance: dict[str, Any]
    halted: dict[str, str] | None


def stored_report(connection: Connection, job: Job, halted: dict[str, str]) -> StatusReport:
    """Read the report of a job from Postgres."""
    return StatusReport(
        job=job,
        last_metrics=last_values(connection, [job.id], LAST_ROWS).get(job.id, {}),
        checkpoint=job.last_checkpoint_path or last_checkpoint(connection, job.id),
        completeness=find_completeness(connection, job).document,
        deliveries=job_deliveries(connection, job.id),
        problems=find_problems(connection, job.id),
        warning=renaming(find_attempts(connection, job.id)),
        provenance=find_provenance(connection, job.id, job.attempt),
        halted=halted,
    )


def gateway_report(remote: GatewayJobs, reference: str) -> StatusReport:
    """Read the report of the job that `reference` names through a gateway."""
    reads, job_id = GatewayReads(remote), remote.job(reference).id
    found = reads.report(job_id)
    return StatusReport(
        job=found.job,
        last_metrics=found.last_metrics,
        checkpoint=found.last_checkpoint,
        completeness=reads.completeness(job_id),
        deliveries=reads.deliveries(job_id),
        problems=reads.checkpoints(job_id, only_problems=True),
        warning=found.warning,
        provenance=reads.provenance(job_id),
        halted=None,
    )
