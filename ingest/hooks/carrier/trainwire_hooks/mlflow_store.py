"""MLflow tracking store for the URI `trainwire:`, which also sends all logged values to the launcher.

Valid names, limits and errors are the same as in MLflow's SQL store: both call the same validation functions.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.entities import LifecycleStage, Metric, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import FEATURE_DISABLED
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils import validation
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_MODELS, MLFLOW_RUN_NAME
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.search_utils import SearchUtils
from mlflow.utils.uri import append_to_uri_path

from . import SOCKET_VARIABLE, mlflow_entities, mlflow_report
from .mlflow_entities import (
    as_map,
    check_max_results,
    find_experiment,
    find_run,
    finite,
    invalid,
    is_in,
    missing,
    whole,
)
from .mlflow_experiments import Experiments
from .mlflow_journal import RUNS, Fields, Journal, State
from .mlflow_models import LoggedModels


def open_store() -> Any:
    """Return a new store. Under `trainwire run`, it shares runs and experiments with the other processes."""
    socket = os.environ.get(SOCKET_VARIABLE)
    store = TrainwireStore(Journal(os.path.dirname(socket) if socket else None))
    _stores[:] = [store]
    return store


_stores: list[Any] = []


def place_of_files(folder: str) -> str:
    """Return the prefix for names of artifacts in `folder`: the metric prefix of their run in MLflow.

    For the folder of a logged model, the name and the id of the model follow. Before `open_store`, the prefix is
    the name of the parent folder.
    """
    key = os.path.basename(os.path.dirname(folder))
    for store in _stores:
        with store._journal.open() as state:
            model = state.models.get(key, {})
            run = state.runs.get(model.get("source_run_id") or key, {})
            return f"{run.get('prefix', '')}{model['name']}/{key}/" if model else str(run.get("prefix", ""))
    return f"{key}/"


class TrainwireStore(Experiments, LoggedModels, AbstractStore):
    """MLflow tracking store of one launch; unsupported methods of `AbstractStore` raise an error with advice."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        with journal.open(writing=True) as state:
            if not state.experiments:
                self.add_experiment(state, "Default", None, {})

    def create_run(self, experiment_id: str, user_id: str, start_time: int, tags: Any, run_name: str) -> Any:
        """Create a run in MLflow. If it is not the first one of its rank, its metrics have a prefix in the job."""
        given = as_map(tags)
        tagged = given.get(MLFLOW_RUN_NAME)
        if run_name and tagged and run_name != tagged:
            raise invalid(
                "Both 'run_name' argument and 'mlflow.runName' tag are specified, but with different values "
                f"(run_name='{run_name}', mlflow.runName='{tagged}')."
            )
        name = run_name or tagged or _generate_random_name()
        with self._journal.open(writing=True) as state:
            key, experiment = find_experiment(state, experiment_id, active=True)
            run_id = uuid.uuid4().hex
            tags_after = {**given, MLFLOW_RUN_NAME: name}
            fields: Fields = {
                "experiment_id": key,
                "user_id": user_id or "",
                "status": "RUNNING",
                "start_time": start_time or 0,
                "end_time": None,
                "lifecycle_stage": LifecycleStage.ACTIVE,
                "artifact_uri": append_to_uri_path(experiment["artifact_location"], run_id, "artifacts"),
                "run_name": name,
                "params": {},
                "tags": tags_after,
                "datasets": [],
                "model_inputs": [],
                "model_outputs": [],
                **mlflow_report.place_of(state.runs, name, tags_after),
            }
            self._journal.change(RUNS, run_id, fields)
            mlflow_report.started(run_id, fields)
            mlflow_report.tags(fields, tags_after)
            return mlflow_entities.run(state, run_id)

    def get_run(self, run_id: str) -> Any:
        """Return a run in MLflow, even if it is marked as deleted; a metric has its value at the largest step."""
        with self._journal.open() as state:
            find_run(state, run_id)
            return mlflow_entities.run(state, run_id)

    def update_run_info(self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None) -> Any:
        """Set the status, end time and name of an active run in MLflow, and return its info.

        None leaves a field unchanged. If the new status ends the run, a log line is added to the job.
        """
        with self._active_run(run_id) as (state, run):
            fields: Fields = {}
            if run_status is not None:
                fields["status"] = RunStatus.to_string(run_status)
            if end_time is not None:
                fields["end_time"] = end_time
            if run_name:
                fields |= {"run_name": run_name, "tags": {MLFLOW_RUN_NAME: run_name}}
            self._journal.change(RUNS, run_id, fields)
            if RunStatus.is_terminated(RunStatus.from_string(run["status"])) and "status" in fields:
                mlflow_report.ended(run_id, run)
            return mlflow_entities.run(state, run_id).info

    def delete_run(self, run_id: str) -> None:
        """Mark a run in MLflow as deleted."""
        self._set_stage(run_id, LifecycleStage.DELETED)

    def restore_run(self, run_id: str) -> None:
        """Mark a deleted run in MLflow as active."""
        self._set_stage(run_id, LifecycleStage.ACTIVE)

    def _set_stage(self, run_id: str, stage: str) -> None:
        with self._journal.open(writing=True) as state:
            find_run(state, run_id)
            self._journal.change(RUNS, run_id, {"lifecycle_stage": stage})

    def _search_runs(  # noqa: PLR0917 - the order is MLflow's
        self,
        experiment_ids: Iterable[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> Any:
        check_max_results(max_results)
        wanted = {str(mlflow_entities.experiment_number(key)) for key in experiment_ids}
        with self._journal.open() as state:
            found = [
                mlflow_entities.run(state, run_id)
                for run_id, run in state.runs.items()
                if run["experiment_id"] in wanted and is_in(run_view_type, run["lifecycle_stage"])
            ]
        found = SearchUtils.sort(SearchUtils.filter(found, filter_string), order_by)
        return SearchUtils.paginate(found, page_token, max_results)

    def log_metric(self, run_id: str, metric: Any) -> None:
        """Add one metric value to a run in MLflow."""
        validation._validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        self._log(run_id, [metric], {}, {})

    def log_param(self, run_id: str, param: Any) -> Any:
        """Log a parameter; raise MLflow's error if the run in MLflow has another value for it."""
        checked = validation._validate_param(param.key, param.value) or param
        with self._active_run(run_id) as (_, run):
            before = run["params"].get(checked.key, checked.value)
            if before != checked.value:
                raise invalid(
                    f"Changing param values is not allowed. Param with key='{checked.key}' was already logged "
                    f"with value='{before}' for run ID='{run_id}'. Attempted logging new value '{checked.value}'."
                )
            self._log(run_id, [], {checked.key: checked.value}, {})
        return checked

    def set_tag(self, run_id: str, tag: Any) -> None:
        """Set a tag of a run in MLflow."""
        checked = validation._validate_tag(tag.key, tag.value) or tag
        self._log(run_id, [], {}, {checked.key: checked.value})

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        """Add metric values, parameters and tags to a run in MLflow; if one of them is invalid, add none."""
        validation._validate_run_id(run_id)
        checked = validation._validate_batch_log_data(metrics, params, tags)
        metrics, params, tags = checked or (metrics, params, tags)
        validation._validate_batch_log_limits(metrics, params, tags)
        validation._validate_param_keys_unique(params)
        self._log(run_id, metrics, as_map(params), as_map(tags))

    def _log(self, run_id: str, metrics: list[Any], params: dict[str, str], tags: dict[str, str]) -> None:
        points = [(each.key, finite(each), whole(each.timestamp), whole(each.step)) for each in metrics]
        with self._active_run(run_id) as (_, run):
            new = {name: value for name, value in params.items() if run["params"].get(name) != value}
            changed = [name for name in new if name in run["params"]]
            if changed:
                pairs = [
                    {"key": name, "old_value": run["params"][name], "new_value": new[name]} for name in changed
                ]
                raise invalid(
                    "Changing param values is not allowed. Params were already "
                    f"logged='{pairs}' for run ID='{run_id}'."
                )
            fields: Fields = {"points": points, "params": new, "tags": tags}
            if tags.get(MLFLOW_RUN_NAME):
                fields["run_name"] = tags[MLFLOW_RUN_NAME]
            self._journal.change(RUNS, run_id, {name: value for name, value in fields.items() if value})
            self._log_of_models(run_id, metrics)
            mlflow_report.values(run, metrics)
            mlflow_report.params(run, new)
            mlflow_report.tags(run, tags)

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove a tag of a run in MLflow."""
        with self._active_run(run_id) as (_, run):
            if key not in run["tags"]:
                raise missing(f"No tag with name: {key} in run with id {run_id}")
            self._journal.change(RUNS, run_id, {"tags": {key: None}})

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> Any:
        """Return the distinct values of a metric, ordered by time, step and value; none for an unknown run.

        With `max_results`, return at most that many; the result's token leads to the next ones.
        """
        with self._journal.open() as state:
            history = state.histories.get((run_id, metric_key))
            points = history.sorted() if history is not None else []
        metrics = [Metric(metric_key, value, ts, step) for ts, step, value in points]
        if max_results is None:
            return PagedList(metrics[SearchUtils.parse_start_offset_from_page_token(page_token) :], None)
        return PagedList(*SearchUtils.paginate(metrics, page_token, max_results))

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        """Log the data sets and models that a run in MLflow reads; those already logged are skipped."""
        validation._validate_run_id(run_id)
        if datasets is not None and not isinstance(datasets, list):
            raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
        validation._validate_dataset_inputs(datasets or [])
        with self._active_run(run_id) as (_, run):
            known = {(each["dataset"]["name"], each["dataset"]["digest"]) for each in run["datasets"]}
            new = {(each.dataset.name, each.dataset.digest): each for each in reversed(datasets or [])}
            added = [
                mlflow_entities.dataset_fields(each) for key, each in reversed(new.items()) if key not in known
            ]
            inputs = [each.model_id for each in models or [] if each.model_id not in run["model_inputs"]]
            self._journal.change(RUNS, run_id, {"datasets": added, "model_inputs": inputs})

    def log_outputs(self, run_id: str, models: Any) -> None:
        """Log the models that a run in MLflow has written."""
        with self._active_run(run_id):
            outputs = [[each.model_id, each.step] for each in models]
            self._journal.change(RUNS, run_id, {"model_outputs": outputs})

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Add a model to the tag `mlflow.log-model.history` of its run, where MLflow 2 lists models."""
        with self._active_run(run_id) as (_, run):
            known = json.loads(run["tags"].get(MLFLOW_LOGGED_MODELS, "[]"))
            value = json.dumps([*known, mlflow_model.get_tags_dict()])
            self._journal.change(RUNS, run_id, {"tags": {MLFLOW_LOGGED_MODELS: value}})

    @contextmanager
    def _active_run(self, run_id: str) -> Iterator[tuple[State, Fields]]:
        with self._journal.open(writing=True) as state:
            run = find_run(state, run_id)
            if run["lifecycle_stage"] != LifecycleStage.ACTIVE:
                stage = run["lifecycle_stage"]
                raise invalid(f"The run {run_id} must be in the 'active' state. Current state is {stage}.")
            yield state, run

    # Traces are not taken

    def search_traces(self, *_args: Any, **_kwargs: Any) -> tuple[list[Any], None]:
        """Return no traces: this store does not support them."""
        return [], None

    def link_traces_to_run(self, trace_ids: list[str], run_id: str) -> None:
        """Do nothing: this store does not support traces."""


def _not_supported(name: str) -> Any:
    def method(*_args: Any, **_kwargs: Any) -> Any:
        raise MlflowException(
            f"{name} is not supported by trainwire: call mlflow.set_tracking_uri with another store, such as "
            "'sqlite:///mlflow.db'",
            error_code=FEATURE_DISABLED,
        )

    return method


for _name in dir(AbstractStore):
    if getattr(getattr(TrainwireStore, _name), "__isabstractmethod__", False):
        setattr(TrainwireStore, _name, _not_supported(_name))
TrainwireStore.__abstractmethods__ = frozenset()  # type: ignore[attr-defined] # no ABC in MLflow 3.17
