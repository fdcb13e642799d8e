"""Reads runs from an MLflow server over its REST API (docs/import-export.md)."""

from __future__ import annotations

import shlex
from array import array
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Final

from trainwire.cli.transfer.readers.merging import MergedSeries
from trainwire.cli.transfer.runs import (
    LONG_NAME,
    MAX_NS,
    MIN_NS,
    OUT_OF_RANGE,
    End,
    Header,
    Item,
    LeftOut,
    SourceRun,
    Tally,
    UnreadableRun,
)
from trainwire.cli.transfer.sending import AGAIN
from trainwire.schemas.times import to_ns
from trainwire.schemas.wire.limits import MAX_METRIC_NAME_CHARS
from trainwire.schemas.wire.messages import Outcome
from trainwire.stack.errors import Problem
from trainwire.stores.mlflow.http import MlflowApi, MlflowRefused, MlflowUnavailable, plain_send
from trainwire.stores.mlflow.runs import JOB_TAG, MlflowRun, RunPoint, metric_pages, run_of

PAGE: Final = 1000
MOST_FOLDERS: Final = 10_000
"""Largest number of artifact folders that are listed for one MLflow run."""
_ENDS: Final[dict[str, Outcome]] = {"FINISHED": "completed", "FAILED": "failed", "KILLED": "failed"}
_MS: Final = 1_000_000


def mlflow_api(uri: str) -> MlflowApi:
    """Return a client for an MLflow server; raise `Problem` if `uri` is not an HTTP URL."""
    if not uri.startswith(("http://", "https://")):
        # MLflow 3.17 refuses folders without the variable.
        allow = "" if "://" in uri and not uri.startswith("file:") else "MLFLOW_ALLOW_FILE_STORE=true "
        raise Problem(
            f"{uri!r} is not the address of an MLflow server: start one with `{allow}mlflow server "
            f"--backend-store-uri {shlex.quote(uri)}` and give its address, like http://localhost:5000"
        )
    return MlflowApi(plain_send(uri))


class MlflowRuns:
    """The runs on an MLflow server.

    `is_mirrored_to` is True if workers deliver jobs to this same server. An imported job then names its existing
    MLflow run, so that workers do not create a second one. `knows_job` returns whether Postgres has a job with
    this number. `copy` becomes part of each run's identity.
    """

    def __init__(
        self, api: MlflowApi, copy: str, *, is_mirrored_to: bool, knows_job: Callable[[int], bool]
    ) -> None:
        self._api = api
        self._copy = copy
        self._is_mirrored_to = is_mirrored_to
        self._knows_job = knows_job

    def runs(self, experiments: Collection[str]) -> Iterator[SourceRun | LeftOut]:
        """Yield the runs of the experiments with these names, or of all experiments if no name is given.

        Experiments that are deleted in MLflow are not read. A run that is deleted, has not ended, or is the mirror
        of a known job becomes a `LeftOut`. Raises `Problem` for an unknown experiment.
        """
        names = self._experiments()
        unknown = sorted(set(experiments) - set(names.values()))
        if unknown:
            shown = ", ".join(map(repr, sorted(names.values())[:10]))
            raise Problem(f"no experiment {unknown[0]!r} in MLflow, which has {shown or 'none'}")
        chosen = {key: name for key, name in names.items() if not experiments or name in experiments}
        for experiment_id, name in chosen.items():
            asked: dict[str, Any] = {"experiment_ids": [experiment_id], "run_view_type": "ALL"}
            order = ["attributes.start_time ASC"]
            for document in self._pages("runs/search", "runs", order_by=order, **asked):
                yield self._run(run_of(document), name)

    def _experiments(self) -> dict[str, str]:
        found = self._pages("experiments/search", "experiments", view_type="ACTIVE_ONLY")
        return {each["experiment_id"]: each["name"] for each in found}

    def _pages(self, endpoint: str, field: str, **asked: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self._api.post(endpoint, max_results=PAGE, **asked, **token)
            yield from page.get(field, [])
            if not page.get("next_page_token"):
                return
            token = {"page_token": page["next_page_token"]}

    def _run(self, run: MlflowRun, experiment: str) -> SourceRun | LeftOut:
        if run.is_deleted:
            return LeftOut(run.name, "deleted in MLflow")
        ended_at = run.ended_at
        if run.status not in _ENDS or ended_at is None:
            return LeftOut(run.name, "has not ended: import it again when it has")
        job = run.tags.get(JOB_TAG, "")
        if run.is_mirror and job.isdecimal() and self._knows_job(int(job)):
            return LeftOut(run.name, "the mirror of a job of this database")

        def items(tally: Tally) -> Iterator[Item]:
            yield from self._items(run, experiment, tally)
            error = None if run.status != "KILLED" else "killed, by MLflow's record"
            yield End(ts=to_ns(ended_at), status=_ENDS[run.status], error_message=error)

        return SourceRun(tool="mlflow", identity=f"{run.run_id} {self._copy}", name=run.name, items=items)

    def _items(self, run: MlflowRun, experiment: str, tally: Tally) -> Iterator[Item]:
        series = self._series(run, tally)
        about = {"imported_from": f"mlflow run {run.run_id}", "mlflow.experiment_name": experiment}
        yield Header(
            name=run.name or run.run_id,
            started_ns=None if run.started_at is None else to_ns(run.started_at),
            tags={**run.tags, **about},
            params=dict(run.params),
            mlflow_run_id=run.run_id if self._is_mirrored_to else None,
        )
        yield from series.points()
        self._count_artifacts(run, tally)

    def _series(self, run: MlflowRun, tally: Tally) -> MergedSeries:
        """Read the points of an MLflow run; raise `UnreadableRun` if the server fails at one of its metrics."""
        series = MergedSeries()
        for number, name in enumerate(sorted(run.metrics)):
            tally.share = partial(float, number / len(run.metrics))
            for page in self._pages_of(run, name):
                if len(name) > MAX_METRIC_NAME_CHARS:
                    tally.skip("points", LONG_NAME, len(page))
                    continue
                points = [point for point in page if MIN_NS <= point.ts_ms * _MS <= MAX_NS]
                tally.skip("points", OUT_OF_RANGE, len(page) - len(points))
                series.extend(
                    name,
                    array("q", [point.ts_ms * 1000 for point in points]),
                    array("q", [point.step for point in points]),
                    array("d", [point.value for point in points]),
                )
        return series

    def _pages_of(self, run: MlflowRun, metric: str) -> Iterator[list[RunPoint]]:
        try:
            yield from metric_pages(self._api, run.run_id, metric)
        except (MlflowRefused, MlflowUnavailable) as exc:
            if isinstance(exc, MlflowUnavailable) and not exc.failed_inside:
                raise
            # Such as a damaged file of the metric: MLflow fails at each request for it.
            reason = f"MLflow fails at its metric {metric!r}: {exc}; see MLflow's log, then {AGAIN}"
            raise UnreadableRun(reason) from exc

    def _count_artifacts(self, run: MlflowRun, tally: Tally) -> None:
        folders = [""]
        for _ in range(MOST_FOLDERS):
            if not folders:
                return
            try:
                path = folders.pop()
                found = self._api.get("artifacts/list", run_id=run.run_id, **({"path": path} if path else {}))
            except (MlflowRefused, MlflowUnavailable) as exc:
                tally.notes.append(f"its artifacts cannot be listed: {exc}")
                return
            files = found.get("files", [])
            folders += [each["path"] for each in files if each.get("is_dir")]
            tally.skip("files", "artifacts stay in MLflow", sum(not each.get("is_dir") for each in files))
        tally.notes.append(f"it has more than {MOST_FOLDERS:,} folders of artifacts: the others are not counted")
