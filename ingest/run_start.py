"""The arguments of `Run`, and the place, job, attempt and lineage that they and the settings give a new run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from trainwire.ingest.identity.open_runs import JobNumber
from trainwire.ingest.process.ranks import Place, checked_place
from trainwire.ingest.sanitize import shown
from trainwire.ingest.settings.environment import whole_number
from trainwire.ingest.settings.trainer_settings import ParentRun, TrainerSettings
from trainwire.schemas.wire.messages import MAX_WORLD_SIZE
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID


class RunOptions(TypedDict, total=False):
    """The arguments of `Run` that its subclasses and `from_env` pass on unchanged."""

    total_epochs: int | None
    params: Mapping[str, Any] | None
    tags: Mapping[str, Any] | None
    project: str | None
    group: str | None
    attempt: int | None
    rank: int | None
    world_size: int | None
    stall_after_s: float | None
    mlflow_run_id: str | None
    resume_from_step: int | None
    parent: int | None
    fork_step: int | None
    strict: bool | None
    redis_url: str | None
    url: str | None


class RunStart(NamedTuple):
    """The attempt of a new run, the run that it joins, and the step from which it continues.

    `joined` is the run of the parent process that this run is a part of, None if it is a run of its own.
    `resume_step` is the step from which the attempt goes on; `own_resume_step` is the same if this process begins
    the attempt, and None if its launcher has begun it.
    """

    attempt: int
    joined: ParentRun | None
    resume_step: int | None
    own_resume_step: int | None


def start_of(
    settings: TrainerSettings, number: JobNumber, attempt: object, resume_step: int | None, *, is_job_given: bool
) -> RunStart:
    """Return the start of a run of job `number`; None for `attempt` and `resume_step` means those of `settings`.

    `is_job_given` is True if the script has named the job: the run then does not join that of a parent process.
    Raises `ValueError` for an invalid attempt.
    """
    joined = None if is_job_given or number.is_made else settings.parent
    if joined is not None and joined.job_id != number.job_id:
        joined = None
    # Attempts of the environment are those of its own job.
    known = joined or (TrainerSettings() if number.is_made and settings.job_id is not None else settings)
    is_of_environment = joined is None and not number.is_made and settings.job_id in (None, number.job_id)
    exported = settings.resume_step if is_of_environment else None
    known_step = exported if resume_step is None else resume_step
    return RunStart(
        known.attempt if attempt is None else whole_number("attempt", attempt, 0, MAX_ATTEMPT),
        joined,
        known_step,
        # The attempt of a script is its launcher's, which exports that it resumes.
        exported if settings.is_captured and is_of_environment else known_step,
    )


def given_place(settings: TrainerSettings, rank: object, world_size: object) -> Place:
    """Return the rank and the number of ranks; None for one of them means that of `settings`.

    A number of ranks that is not above the rank becomes None, with a warning. Raises `ValueError` for an invalid
    value.
    """
    return checked_place(
        settings.rank if rank is None else whole_number("rank", rank, 0, MAX_ATTEMPT),
        settings.world_size if world_size is None else whole_number("world_size", world_size, 1, MAX_WORLD_SIZE),
    )


def checked_id(job_id: object) -> int:
    """Return `job_id` as an int; raise `ValueError` if it is not the number of a job."""
    if isinstance(job_id, str):
        is_number = job_id.isdecimal()
        remedy = "write it without quotes" if is_number else "a name is written Run(name=...)"
        raise ValueError(f"job_id={shown(job_id)} is not a whole number: {remedy}")  # noqa: TRY004 - as for others
    return whole_number("job_id", job_id, 1, MAX_ID)


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
