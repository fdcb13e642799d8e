"""Validates the arguments with which a `Run` resumes its job or forks another job at a step (docs/resume.md)."""

from __future__ import annotations

from typing import NamedTuple

from trainwire.ingest.identity.open_runs import JobNumber
from trainwire.ingest.settings.environment import whole_number
from trainwire.schemas.wire.validation import MAX_ID


class Lineage(NamedTuple):
    """The step from which an attempt resumes its job, or the other job and the step from which a job is forked."""

    resume_step: int | None = None
    parent_id: int | None = None
    fork_step: int | None = None


def checked_lineage(number: JobNumber, resume_from_step: object, parent: object, fork_step: object) -> Lineage:
    """Validate the arguments of a `Run` of job `number`, and return them as a `Lineage`.

    Raises `ValueError` for an invalid combination, such as a parent without a step.
    """
    if resume_from_step is not None:
        resume_step = whole_number("resume_from_step", resume_from_step, 0, MAX_ID)
        if parent is not None or fork_step is not None:
            raise ValueError(
                f"resume_from_step={resume_step} goes on with the same job, and parent={parent!r}, "
                f"fork_step={fork_step!r} begin a new one: give one of the two"
            )
        if number.is_made:
            raise ValueError(
                f"resume_from_step={resume_step} needs the number of the job to resume: "
                f"Run(42, resume_from_step={resume_step})"
            )
        return Lineage(resume_step)
    if parent is None and fork_step is None:
        return Lineage()
    if parent is None or fork_step is None:
        given = f"fork_step={fork_step!r}" if parent is None else f"parent={parent!r}"
        raise ValueError(f"{given} alone is no fork: give both, Run(parent=42, fork_step=4000)")
    parent_id = whole_number("parent", parent, 1, MAX_ID)
    if parent_id == number.job_id:
        raise ValueError(
            f"parent={parent_id} is the job itself: Run({parent_id}, resume_from_step=...) resumes it"
        )
    return Lineage(None, parent_id, whole_number("fork_step", fork_step, 0, MAX_ID))
