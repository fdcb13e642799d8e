"""Creates and updates, for one attempt of a job, the MLflow run that workers write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from trainwire.stores.mlflow.http import MlflowApi, MlflowRefused
from trainwire.stores.mlflow.runs import (
    ATTEMPT_TAG,
    JOB_TAG,
    MIRROR_SOURCE,
    SOURCE_TAG,
    MlflowRun,
    get_run,
    search_runs,
    tag_filter,
)
from trainwire.workers.sinks.base import RefusedRow
from trainwire.workers.sinks.mlflow.rows import AttemptState
from trainwire.workers.sinks.mlflow.rules import (
    FINAL_STATUS,
    MAX_TAG_CHARS,
    OLD_PARAM_CHARS,
    MetricValue,
    Notes,
    cut,
    milliseconds,
    params_of,
    provenance_tags,
    run_name,
    safe_name,
    tags_of,
    text_requests,
)

CREATED_TAG: Final = "trainwire.job_created_at"
"""Tag that identifies a run together with job and attempt, as databases may have jobs of the same number."""
CHANGED_PARAM_PREFIX: Final = "changed_param/"
SEARCHED_VALUES: Final = 100
"""Maximum number of values in a search for refused ones: each takes up to four requests, and other jobs wait."""

_Item = TypeVar("_Item")


class RunGone(Exception):  # noqa: N818 - a state of the run
    """The MLflow run was deleted in MLflow."""


class ManyRefused(Exception):  # noqa: N818 - a state of the turn
    """MLflow refused a request with so many values that a search for the refused ones would take too long."""


class RunMirror:
    """Creates the MLflow run that workers write for one attempt, and updates and ends it.

    Adapted names and values, and refused params and tags, are recorded in `notes`.
    """

    def __init__(self, api: MlflowApi, job_id: int, attempt: AttemptState, notes: Notes) -> None:
        self._api = api
        self._job_id = job_id
        self._attempt = attempt
        self._notes = notes
        self._run_id = attempt.mirror_run_id or ""

    def open(self, experiment_id: str) -> str:
        """Return the id of the MLflow run; create the run if no worker has created it before.

        Call this before the other methods, unless Postgres has the id already.
        """
        if not self._run_id:
            found = search_runs(self._api, [experiment_id], tag_filter(self._identity()), limit=1)
            self._run_id = found[0].run_id if found else self._create(experiment_id)
        return self._run_id

    def describe(self) -> None:
        """Update the name, params and tags of the run in MLflow.

        A changed param keeps its first value, and the new one becomes a tag. A run that had ended is reopened if
        its attempt has resumed. Raises `RunGone` if the run was deleted in MLflow.
        """
        run = self._existing()
        params, tags = params_of(self._attempt, self._notes), tags_of(self._attempt, self._notes)
        tags |= provenance_tags(self._attempt, self._notes)
        for name in [name for name in params if name in run.params]:
            value = params.pop(name)
            # A param keeps its first value in MLflow, cut to fewer characters by old servers.
            if run.params[name] not in {value, cut(name, value, OLD_PARAM_CHARS, Notes())}:
                key = safe_name(CHANGED_PARAM_PREFIX + name)
                tags[key] = cut(f"tag {key}", value, MAX_TAG_CHARS, self._notes)
                self._notes.add(f"param {name}", f"keeps its first value in MLflow; the new one is the tag {key}")
        self._log_params(params)
        self._log_tags({name: value for name, value in tags.items() if run.tags.get(name) != value})
        if self._attempt.name and run.name != run_name(self._job_id, self._attempt):
            self._update(run_name=run_name(self._job_id, self._attempt))
        if run.status == "KILLED" and self._attempt.status not in FINAL_STATUS:
            self._update(status="RUNNING")  # the attempt was lost and has resumed

    def log(self, metrics: Sequence[MetricValue]) -> list[RefusedRow]:
        """Send the metric values of one request; return one `RefusedRow` for each value that MLflow refused.

        Raises `RunGone` if the run was deleted in MLflow, and `ManyRefused` if the caller has to send fewer rows
        so that the refused ones can be found.
        """
        may_search = len(metrics) <= SEARCHED_VALUES or len({metric.row.seq for metric in metrics}) == 1
        refused = self._log("metrics", metrics, MetricValue.document, may_halve=may_search)
        return [
            RefusedRow(metric.row.seq, metric.row.source, "refused", f"metric {metric.key}: {why}")
            for metric, why in refused
        ]

    def end(self) -> None:
        """End the run with the status of the attempt, if the attempt has ended.

        Raises `RunGone` if the run was deleted in MLflow.
        """
        status = FINAL_STATUS.get(self._attempt.status)
        if status is not None:
            at = self._attempt.completed_at
            self._update(status=status, **({} if at is None else {"end_time": milliseconds(at)}))

    def supersede(self, run_id: str) -> None:
        """End the run because the trainer logs to `run_id`, a run that it created itself.

        Raises `RunGone` if the run was deleted in MLflow.
        """
        self._log_tags({"superseded_by": run_id})
        self._update(status="KILLED")

    def _identity(self) -> dict[str, str]:
        return {
            JOB_TAG: str(self._job_id),
            ATTEMPT_TAG: str(self._attempt.attempt),
            CREATED_TAG: self._attempt.job_created_at.isoformat(),
        }

    def _create(self, experiment_id: str) -> str:
        began = self._attempt.started_at or self._attempt.job_created_at
        made = self._api.post(
            "runs/create",
            experiment_id=experiment_id,
            run_name=run_name(self._job_id, self._attempt),
            start_time=milliseconds(began),
            tags=[_document(tag) for tag in (self._identity() | {SOURCE_TAG: MIRROR_SOURCE}).items()],
        )
        return str(made["run"]["info"]["run_id"])

    def _existing(self) -> MlflowRun:
        run = get_run(self._api, self._run_id)
        if run is None or run.is_deleted:
            raise RunGone
        return run

    def _log_params(self, params: Mapping[str, str]) -> None:
        for batch in text_requests(params):
            for (name, value), why in self._log("params", batch, _document):
                short = cut(f"param {name}", value, OLD_PARAM_CHARS, self._notes)
                if short == value or self._log("params", [(name, short)], _document):
                    self._notes.add(f"param {name}", f"is refused by MLflow: {why}")

    def _log_tags(self, tags: Mapping[str, str]) -> None:
        for batch in text_requests(tags):
            for (name, _), why in self._log("tags", batch, _document):
                self._notes.add(f"tag {name}", f"is refused by MLflow: {why}")

    def _log(
        self,
        field: str,
        items: Sequence[_Item],
        document: Callable[[_Item], object],
        *,
        may_halve: bool = True,
    ) -> list[tuple[_Item, str]]:
        """Send `items` in one request; return the refused items, each with MLflow's message.

        If MLflow refuses the request, its items are halved to find the refused ones. Without `may_halve`,
        `ManyRefused` is raised instead. Raises `RunGone` if the run was deleted in MLflow.
        """
        if not items:
            return []
        try:
            self._api.post("runs/log-batch", run_id=self._run_id, **{field: [document(item) for item in items]})
        except MlflowRefused as exc:
            self._existing()
            if not may_halve:
                raise ManyRefused from exc
            if len(items) == 1:
                return [(items[0], str(exc))]
            middle = len(items) // 2
            halves = items[:middle], items[middle:]
            return [refused for half in halves for refused in self._log(field, half, document)]
        return []

    def _update(self, **fields: Any) -> None:
        try:
            self._api.post("runs/update", run_id=self._run_id, **fields)
        except MlflowRefused:
            self._existing()
            raise


def _document(item: tuple[str, str]) -> dict[str, str]:
    return {"key": item[0], "value": item[1]}
