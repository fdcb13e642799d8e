"""Reads the MLflow runs of a job: tags, summaries of metrics, and metric histories page by page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, Literal

import msgspec

from trainwire.schemas.non_finite import NON_FINITE_NAMES
from trainwire.stores.mlflow.http import MISSING, MlflowApi, MlflowRefused
from trainwire.stores.postgres.jobs.attempts import Attempt

MIRROR_SOURCE: Final = "trainwire"
"""Value of the tag `mlflow.source.name` in MLflow runs that workers created."""
SOURCE_TAG: Final = "mlflow.source.name"
JOB_TAG: Final = "job_id"
ATTEMPT_TAG: Final = "attempt"
MOST_EXPERIMENTS: Final = 1000
"""Largest number of experiments in which runs of a job are searched, the most recently changed first."""
HISTORY_PAGE: Final = 25_000

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]


class MlflowRun(msgspec.Struct, frozen=True, kw_only=True):
    """One MLflow run; `metrics` contains the last value of each metric."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    is_deleted: bool
    started_at: datetime | None
    ended_at: datetime | None
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]

    @property
    def is_mirror(self) -> bool:
        """Whether trainwire's workers created this MLflow run, as a copy of an attempt."""
        return self.tags.get(SOURCE_TAG) == MIRROR_SOURCE


class RunPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One value of one metric; `ts_ms` is in milliseconds since 1970."""

    ts_ms: int
    step: int
    value: float


class MetricSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The summary of one metric; `lowest` and `highest` are NaN only if all values are NaN."""

    points: int
    last: float
    lowest: float
    highest: float


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One MLflow run with summaries of its metrics; `more_metrics` is the number of metrics that are left out."""

    run: MlflowRun
    experiment: str
    metrics: dict[str, MetricSummary]
    more_metrics: int


def get_run(api: MlflowApi, run_id: str) -> MlflowRun | None:
    """Return the MLflow run with this id, even if it is marked as deleted; None if it does not exist."""
    try:
        return run_of(api.get("runs/get", run_id=run_id)["run"])
    except MlflowRefused as exc:
        if exc.code == MISSING:
            return None
        raise


def get_run_by_job_id(api: MlflowApi, job_id: int, attempt: int | None = None) -> MlflowRun | None:
    """Return the newest MLflow run that is tagged with this job (and attempt, if given); None if there is none.

    Deleted runs, and runs outside of the experiments in `experiment_ids`, are not found.
    """
    wanted = {JOB_TAG: str(job_id)} | ({} if attempt is None else {ATTEMPT_TAG: str(attempt)})
    found = search_runs(api, experiment_ids(api), tag_filter(wanted), limit=1)
    return found[0] if found else None


def run_id_in_mlflow(api: MlflowApi, job_id: int, attempt: Attempt) -> str | None:
    """Return the id of an attempt's MLflow run; None if there is none.

    It is the run recorded in Postgres, otherwise the newest run tagged with the job, unless that is a mirror.
    """
    if attempt.run_id is not None:
        return attempt.run_id
    tagged = get_run_by_job_id(api, job_id)
    # A mirror that is not recorded belongs to a job of another database.
    return None if tagged is None or tagged.is_mirror else tagged.run_id


def get_run_metrics(api: MlflowApi, run_id: str, names: Iterable[str]) -> dict[str, list[RunPoint]]:
    """Return metric -> all its points, ordered by step and time, for each of `names`."""
    return {
        name: sorted(chain.from_iterable(metric_pages(api, run_id, name)), key=_step_and_time) for name in names
    }


def get_run_summary(api: MlflowApi, run_id: str, most_metrics: int) -> RunSummary | None:
    """Return an MLflow run with summaries of its first `most_metrics` metrics by name; None if it is not found."""
    run = get_run(api, run_id)
    if run is None:
        return None
    names = sorted(run.metrics)
    histories = get_run_metrics(api, run_id, names[:most_metrics])
    experiment = api.get("experiments/get", experiment_id=run.experiment_id)["experiment"]["name"]
    return RunSummary(
        run=run,
        experiment=experiment,
        metrics={
            name: summary_of([point.value for point in points]) for name, points in histories.items() if points
        },
        more_metrics=max(len(names) - most_metrics, 0),
    )


def summary_of(values: list[float]) -> MetricSummary:
    """Return the summary of a metric's values, at least one, in the order in which they were logged."""
    numbers = [value for value in values if value == value] or values  # noqa: PLR0124 - NaN
    return MetricSummary(points=len(values), last=values[-1], lowest=min(numbers), highest=max(numbers))


def run_url(tracking_uri: str, run: MlflowRun) -> str:
    """Return the URL of the MLflow run in MLflow's user interface."""
    return f"{tracking_uri.rstrip('/')}/#/experiments/{run.experiment_id}/runs/{run.run_id}"


def experiment_ids(api: MlflowApi) -> list[str]:
    """Return the ids of the MOST_EXPERIMENTS most recently changed experiments, without deleted ones."""
    found = api.post("experiments/search", max_results=MOST_EXPERIMENTS, order_by=["last_update_time DESC"])
    return [experiment["experiment_id"] for experiment in found.get("experiments", [])]


def search_runs(api: MlflowApi, experiments: Collection[str], wanted: str, limit: int) -> list[MlflowRun]:
    """Return at most `limit` MLflow runs in `experiments` that match the MLflow filter `wanted`, newest first.

    Deleted runs are left out.
    """
    if not experiments:
        return []
    found = api.post(
        "runs/search",
        experiment_ids=list(experiments),
        filter=wanted,
        max_results=limit,
        order_by=["attributes.start_time DESC"],
    )
    return [run_of(run) for run in found.get("runs", [])]


def delete_run(api: MlflowApi, run_id: str) -> None:
    """Mark an MLflow run as deleted, so that `mlflow gc` removes it.

    It is not an error if the run is already marked or does not exist. Raises `MlflowRefused` if MLflow refuses.
    """
    try:
        api.post("runs/delete", run_id=run_id)
    except MlflowRefused as exc:
        run = get_run(api, run_id)
        if run is not None and not run.is_deleted:
            raise MlflowRefused(exc.code, f"MLflow refuses to delete run {run_id}: {exc}") from exc


def tag_filter(tags: Mapping[str, str]) -> str:
    """Return an MLflow filter for runs that have all of `tags`; the values must not contain quotes."""
    return " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def get_metric_page(
    api: MlflowApi, run_id: str, name: str, limit: int, token: str | None = None
) -> tuple[list[RunPoint], str | None]:
    """Return at most `limit` points of a metric, ordered by time, and the token of the next page.

    `token` is the token that the previous page returned, or None for the first page. The last page has the token
    None.
    """
    page = {"page_token": token} if token else {}
    found = api.get("metrics/get-history", run_id=run_id, metric_key=name, max_results=limit, **page)
    points = [
        RunPoint(ts_ms=int(point["timestamp"]), step=int(point.get("step", 0)), value=_number(point["value"]))
        for point in found.get("metrics", [])
    ]
    return points, found.get("next_page_token") or None


def metric_pages(api: MlflowApi, run_id: str, name: str) -> Iterator[list[RunPoint]]:
    """Yield all points of a metric in pages, ordered by time; the first page may be empty."""
    points, token = get_metric_page(api, run_id, name, HISTORY_PAGE)
    yield points
    while token is not None:
        points, token = get_metric_page(api, run_id, name, HISTORY_PAGE, token)
        yield points


def _step_and_time(point: RunPoint) -> tuple[int, int]:
    return point.step, point.ts_ms


def run_of(document: Mapping[str, Any]) -> MlflowRun:
    """Convert a run from the JSON of MLflow's REST API."""
    info, data = document["info"], document.get("data", {})
    return MlflowRun(
        run_id=info["run_id"],
        experiment_id=info["experiment_id"],
        name=info.get("run_name", ""),
        status=info["status"],
        is_deleted=info.get("lifecycle_stage") == "deleted",
        started_at=_time(info.get("start_time")),
        ended_at=_time(info.get("end_time")),
        metrics={metric["key"]: _number(metric["value"]) for metric in data.get("metrics", [])},
        params={param["key"]: param.get("value", "") for param in data.get("params", [])},
        tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", [])},
    )


def _number(value: Any) -> float:
    return NON_FINITE_NAMES[value] if isinstance(value, str) else float(value)


def _time(ms: Any) -> datetime | None:
    return datetime.fromtimestamp(int(ms) / 1000, UTC) if ms else None


MOST_REQUESTS: Final = 50
"""Largest number of requests to MLflow for one `HistoryPage`; each metric needs one."""


class HistoryPlace(msgspec.Struct, frozen=True):
    """The start of a page of metric histories.

    `name` is the first metric on the page. `token` is MLflow's page token in the history of this metric; None
    means its first point.
    """

    name: str
    token: str | None = None


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of metric histories: points by metric. `next` is the start of the next page, None for the last page.

    `more_metrics` is the number of metrics that have no point on this page or an earlier one.
    """

    metrics: dict[str, list[RunPoint]]
    more_metrics: int
    next: HistoryPlace | None


def read_page(
    api: MlflowApi, run_id: str, names: Sequence[str], limit: int, place: HistoryPlace | None = None
) -> HistoryPage:
    """Return a page of the histories of the metrics `names`, with at most `limit` points in total.

    The page also ends after MOST_REQUESTS metrics. `place` is the `next` of the previous page, or None for the
    first page; `names` must be the same for all pages. Raises the exceptions of `MlflowApi`.
    """
    first = 0 if place is None else names.index(place.name)
    token = None if place is None else place.token
    metrics: dict[str, list[RunPoint]] = {}
    for number, name in enumerate(names[first:], first):
        if not limit or len(metrics) == MOST_REQUESTS:
            return HistoryPage(metrics=metrics, more_metrics=len(names) - number, next=HistoryPlace(name))
        metrics[name], token = get_metric_page(api, run_id, name, limit, token)
        limit -= len(metrics[name])
        if token is not None:
            more = len(names) - number - 1
            return HistoryPage(metrics=metrics, more_metrics=more, next=HistoryPlace(name, token))
    return HistoryPage(metrics=metrics, more_metrics=0, next=None)
