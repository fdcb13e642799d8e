"""The logged models of MLflow 3: `log_model` creates a model, and stores its files as artifacts."""

from __future__ import annotations

import uuid
from typing import Any

from mlflow import entities
from mlflow.entities import LifecycleStage, Metric
from mlflow.store.entities.paged_list import PagedList
from mlflow.utils import validation
from mlflow.utils.name_utils import _generate_random_name
from mlflow.utils.uri import append_to_uri_path

from .mlflow_entities import as_map, check_max_results, find_experiment, finite, invalid, made, missing, now
from .mlflow_journal import MODELS, Fields, Journal, State

MAX_RESULTS = 100


class LoggedModels:
    """Mixin of `TrainwireStore`: the methods for MLflow's logged models."""

    _journal: Journal

    def create_logged_model(  # noqa: PLR0917 - the order is MLflow's
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: Any = None,
        params: Any = None,
        model_type: str | None = None,
    ) -> Any:
        """Create a logged model with status PENDING; MLflow uploads its files later."""
        validation._validate_logged_model_name(name)
        with self._journal.open(writing=True) as state:
            key, experiment = find_experiment(state, experiment_id, active=True)
            model_id, created = f"m-{uuid.uuid4().hex}", now()
            location = append_to_uri_path(experiment["artifact_location"], "models", model_id, "artifacts")
            fields = {
                "experiment_id": key,
                "name": name or _generate_random_name(),
                "artifact_location": location,
                "creation_timestamp": created,
                "last_updated_timestamp": created,
                "model_type": model_type,
                "source_run_id": source_run_id,
                "status": entities.LoggedModelStatus.PENDING.to_int(),
                "tags": as_map(tags),
                "params": as_map(params),
                "values": [],
                "lifecycle_stage": LifecycleStage.ACTIVE,
            }
            self._journal.change(MODELS, model_id, fields)
            return _model(state, model_id)

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> Any:
        """Return the model with this id; raise MLflow's error if it is deleted, unless `allow_deleted` is set."""
        with self._journal.open() as state:
            fields = _find(state, model_id)
            if fields["lifecycle_stage"] == LifecycleStage.DELETED and not allow_deleted:
                raise missing(f"Logged model with ID '{model_id}' not found.")
            return _model(state, model_id)

    def finalize_logged_model(self, model_id: str, status: Any) -> Any:
        """Set a model's final status, READY, or FAILED if its files could not be uploaded; return the model."""
        self._change(model_id, {"status": status.to_int(), "last_updated_timestamp": now()})
        return self.get_logged_model(model_id, allow_deleted=True)

    def delete_logged_model(self, model_id: str) -> None:
        """Mark a logged model as deleted."""
        self._change(model_id, {"lifecycle_stage": LifecycleStage.DELETED, "last_updated_timestamp": now()})

    def set_logged_model_tags(self, model_id: str, tags: Any) -> None:
        """Add tags to a logged model, or replace their values."""
        self._change(model_id, {"tags": as_map(tags)})

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        """Remove a tag of a logged model."""
        with self._journal.open(writing=True) as state:
            if key not in _find(state, model_id)["tags"]:
                raise missing(f"No tag with key {key!r} found for model with ID {model_id!r}.")
            self._journal.change(MODELS, model_id, {"tags": {key: None}})

    def log_logged_model_params(self, model_id: str, params: Any) -> None:
        """Add parameters to a logged model, or replace their values."""
        self._change(model_id, {"params": as_map(params)})

    def search_logged_models(  # noqa: PLR0917
        self,
        experiment_ids: list[str],
        filter_string: str | None = None,
        datasets: Any = None,
        max_results: int | None = None,
        order_by: Any = None,
        page_token: str | None = None,
    ) -> Any:
        """Return a page (default size: 100) of the active models in these experiments that match the filter."""
        from mlflow.utils.search_utils import SearchLoggedModelsUtils  # noqa: PLC0415 - MLflow 3

        if datasets and not all(each.get("dataset_name") for each in datasets):
            raise invalid("`dataset_name` in the `datasets` clause must be specified.")
        max_results = max_results or MAX_RESULTS
        check_max_results(max_results)
        with self._journal.open() as state:
            found = [
                _model(state, model_id)
                for model_id, fields in state.models.items()
                if fields["experiment_id"] in experiment_ids and fields["lifecycle_stage"] == LifecycleStage.ACTIVE
            ]
        found = SearchLoggedModelsUtils.filter_logged_models(found, filter_string, datasets)
        found = SearchLoggedModelsUtils.sort(found, order_by)
        return PagedList(*SearchLoggedModelsUtils.paginate(found, page_token, max_results))

    def _change(self, model_id: str, fields: Fields) -> None:
        with self._journal.open(writing=True) as state:
            _find(state, model_id)
            self._journal.change(MODELS, model_id, fields)

    def _log_of_models(self, run_id: str, metrics: list[Any]) -> None:
        """Add each metric that has a `model_id` to the logged model with this id, too."""
        for metric in metrics:
            if getattr(metric, "model_id", None) is None:
                continue
            value = {
                "key": metric.key,
                "value": finite(metric),
                "timestamp": metric.timestamp,
                "step": metric.step,
            }
            of = {"dataset_name": metric.dataset_name, "dataset_digest": metric.dataset_digest, "run_id": run_id}
            self._journal.change(MODELS, metric.model_id, {"values": [{**value, **of}]})


def _find(state: State, model_id: str) -> Fields:
    fields = state.models.get(model_id)
    if fields is None or "name" not in fields:
        raise missing(f"Logged model with ID '{model_id}' not found.")
    return fields


def _model(state: State, model_id: str) -> Any:
    fields = state.models[model_id]
    metrics = [Metric(model_id=model_id, **value) for value in fields["values"]]
    given = {**fields, "tags": dict(fields["tags"]), "params": dict(fields["params"])}
    return made(entities.LoggedModel, model_id=model_id, **{**given, "metrics": metrics})
