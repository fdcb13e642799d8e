"""Tools that find, describe and compare jobs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from trainwire.cli.comparison import MOST_JOBS, differs, final_metrics, flat, side_by_side
from trainwire.cli.mcp_tools.answers import Answer, JobReference, MaxChars, MaxItems, head, one_or_more
from trainwire.client.client import Client
from trainwire.client.job import Job
from trainwire.client.records import JobInfo
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.validation import MAX_ATTEMPT, MAX_ID

LISTED: Final = ("status_reason", "started_at", "completed_at", "error_message")
STATE: Final = (
    *("status_reason", "exit_code", "error_message", "created_at", "started_at", "completed_at", "last_seen_at"),
    *("quiet_since", "archived_at", "current_epoch", "total_epochs", "progress_percent", "note", "rows"),
    *("best_checkpoint_path", "last_checkpoint_path"),
)
Part = Literal["params", "tags", "metrics", "completeness", "provenance"]
PARTS: Final[tuple[Part, ...]] = ("params", "tags", "metrics", "completeness", "provenance")


def list_jobs(
    client: Client,
    *,
    filter: Annotated[  # noqa: A002 - its name everywhere
        str,
        Field(
            description="Only jobs for which this is true: status = failed and params.lr < 0.01 and started > 2d "
            "ago. Fields: id, name, status, note, error, exit_code, created, started, ended, duration, "
            "params.NAME, tags.NAME, metrics.NAME (final or newest), metrics.NAME.best. Also: in (a, b), ~ for a "
            "pattern with *, is null, not, or, parentheses, durations (2h)."
        ),
    ] = "",
    sort: Annotated[
        str, Field(description="A field, with - for descending: -metrics.accuracy. Else newest first.")
    ] = "",
    columns: Annotated[
        list[str],
        one_or_more,
        Field(max_length=50, description="Fields to return for each job: params.lr, metrics.loss."),
    ] = [],  # noqa: B006 - read only
    limit: Annotated[int, Field(ge=1, le=200, description="Most jobs.")] = 20,
    cursor: Annotated[str, Field(description="`next` of the answer before, with the same filter and sort.")] = "",
) -> dict[str, Any]:
    """List jobs (training runs), filtered and sorted. job_fields lists the names for filter, sort and columns."""
    page = client.job_page(filter or None, sort=sort or None, columns=columns, limit=limit, cursor=cursor or None)
    answer = Answer(max_chars=300)
    jobs = [head(job) | _fields(job.info, LISTED) | _columns(job, columns) for job in page.jobs]
    answer.add(matching=page.total, jobs=jobs, next=page.next)
    if page.next:
        answer.leave_out("more jobs match: repeat with cursor=`next`")
    return answer.document()


def job_fields(client: Client) -> dict[str, Any]:
    """Return the fields for filters, sort orders and columns: fixed ones, and names in the newest jobs."""
    answer = Answer()
    answer.add(**{f"{kind}_fields": names for kind, names in client.fields().items()})
    return answer.document()


def get_job(
    client: Client,
    *,
    job: JobReference,
    parts: Annotated[list[Part], Field(description="Parts to return beside the state.")] = list(PARTS),  # noqa: B006
    attempt: Annotated[
        int | None, Field(ge=0, le=MAX_ATTEMPT, description="The attempt of the provenance; default: the newest.")
    ] = None,
    max_items: MaxItems = 100,
    max_chars: MaxChars = 1000,
) -> dict[str, Any]:
    """Describe one job: state, times, progress, parameters, tags, metrics, completeness, code and machine."""
    found = client.job(job)
    info = found.info
    answer = Answer(found, max_chars=max_chars, max_items=max_items)
    answer.add(**_fields(info, STATE))
    if "params" in parts:
        answer.add(params=info.params or {})
    if "tags" in parts:
        answer.add(tags=info.tags or {})
    if "metrics" in parts:
        answer.add(final_metrics=final_metrics(info), best_metrics=info.best_metrics, best_epoch=info.best_epoch)
        answer.leave_out("metrics that are not among the newest rows: metric_names lists all")
    if "completeness" in parts:
        answer.add(completeness=found.completeness().line)
    if "provenance" in parts:
        answer.add(provenance=found.provenance(attempt))
    return answer.document()


def compare_jobs(
    client: Client,
    jobs: Annotated[
        list[JobReference], Field(min_length=2, max_length=MOST_JOBS, description="Two to twenty jobs.")
    ],
    equal_params: Annotated[bool, Field(description="Also parameters that are equal.")] = False,
    metrics: Annotated[str, Field(description="Only metrics that match, with * and ?, such as val/*.")] = "*",
    max_items: MaxItems = 200,
) -> dict[str, Any]:
    """Compare jobs: parameters that differ, and the final and best value of each metric, in the order of `jobs`.

    null: the job has no such value.
    """
    found = [client.job(each) for each in jobs]
    answer = Answer(max_chars=300, max_items=max_items)
    answer.add(jobs=[head(job) | _fields(job.info, LISTED) for job in found])
    params = side_by_side([flat(job.info.params or {}) for job in found])
    shown = {name: values for name, values in params.items() if equal_params or differs(values)}
    answer.add(params=shown)
    results = (
        ("final_metrics", [final_metrics(job.info) for job in found]),
        ("best_metrics", [job.info.best_metrics or {} for job in found]),
    )
    for name, maps in results:
        matching = side_by_side(maps).items()
        answer.add(**{name: {each: values for each, values in matching if fnmatchcase(each, metrics)}})
    if equal := len(params) - len(shown):
        answer.leave_out(f"{equal:,} parameters that are equal: repeat with equal_params=true")
    return answer.document()


def checkpoints(
    client: Client,
    job: JobReference,
    limit: Annotated[int, Field(ge=1, le=1000, description="Most checkpoints.")] = 50,
    before_seq: Annotated[int, Field(ge=0, le=MAX_ID, description="Only checkpoints before this `seq`.")] = MAX_ID,
) -> dict[str, Any]:
    """List a job's newest checkpoints in the order in which they were stored, with the state of their files."""
    found = client.job(job)
    every = found.checkpoints()
    wanted = [each for each in every if each.seq < before_seq]
    shown = [
        {
            "seq": each.seq,
            "kind": each.checkpoint_kind,
            "state": each.state,
            "uri": each.uri,
            "is_best": each.is_best,
            "is_last": each.is_last,
            "epoch": each.epoch,
            "step": each.step,
            "time": to_datetime(each.ts),
            "size_bytes": each.size_bytes,
            "metrics": each.metrics,
        }
        for each in wanted[-limit:]
    ]
    answer = Answer(found)
    answer.add(checkpoints_of_job=len(every), checkpoints=shown)
    if len(wanted) > limit:
        answer.leave_out(f"{len(wanted) - limit:,} older ones: repeat with before_seq={shown[0]['seq']}")
    return answer.document()


def _fields(info: JobInfo, names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: getattr(info, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _columns(job: Job, wanted: list[str]) -> dict[str, Any]:
    return {"columns": job.info.columns} if wanted else {}
