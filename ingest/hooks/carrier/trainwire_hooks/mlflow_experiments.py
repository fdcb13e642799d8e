"""Methods for experiments of trainwire's MLflow tracking store; in each launch, experiment ids count from 0."""

from __future__ import annotations

import os
from typing import Any

from mlflow.entities import LifecycleStage, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE, RESOURCE_ALREADY_EXISTS
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_DEFAULT
from mlflow.utils import validation
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchUtils
from mlflow.utils.uri import append_to_uri_path, resolve_uri_if_local

from . import MLFLOW_URI
from .mlflow_entities import (
    as_map,
    check_max_results,
    experiment,
    find_experiment,
    is_in,
    missing,
    no_experiment,
    now,
)
from .mlflow_journal import EXPERIMENTS, RUNS, Journal, State


class Experiments:
    """Mixin of `TrainwireStore`: the methods that create, read, search, change and delete experiments.

    They raise MLflow's errors, such as for an experiment that does not exist or a name that is in use.
    """

    _journal: Journal

    def search_experiments(
        self,
        view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = SEARCH_MAX_RESULTS_DEFAULT,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Any:
        """Return a page of the experiments that match the filter and the view type, by default newest first."""
        check_max_results(max_results)
        with self._journal.open() as state:
            found = [experiment(key, fields) for key, fields in state.experiments.items()]
        found = [each for each in found if is_in(view_type, each.lifecycle_stage)]
        found = SearchExperimentsUtils.filter(found, filter_string)
        found = SearchExperimentsUtils.sort(found, order_by or ["creation_time DESC", "experiment_id ASC"])
        return PagedList(*SearchUtils.paginate(found, page_token, max_results))

    def create_experiment(self, name: str, artifact_location: str | None = None, tags: Any = None) -> str:
        """Create an experiment and return its id."""
        validation._validate_experiment_name(name)
        for tag in tags or []:
            validation._validate_experiment_tag(tag.key, tag.value)
        with self._journal.open(writing=True) as state:
            self._check_free(state, name)
            location = resolve_uri_if_local(artifact_location) if artifact_location else None
            return self.add_experiment(state, name, location, as_map(tags))

    def _check_free(self, state: State, name: str) -> None:
        if any(fields["name"] == name for fields in state.experiments.values()):
            raise MlflowException(f"Experiment(name={name}) already exists.", RESOURCE_ALREADY_EXISTS)

    def add_experiment(self, state: State, name: str, location: str | None, tags: dict[str, str]) -> str:
        """Add an experiment to `state` under the next free id, and return the id.

        If `location` is None, its artifacts are stored in `mlruns` in the working folder.
        """
        key = str(len(state.experiments))
        created = now()
        fields = {
            "name": name,
            "artifact_location": location or append_to_uri_path(f"{MLFLOW_URI}{os.path.abspath('mlruns')}", key),
            "lifecycle_stage": LifecycleStage.ACTIVE,
            "tags": tags,
            "creation_time": created,
            "last_update_time": created,
        }
        self._journal.change(EXPERIMENTS, key, fields)
        return key

    def get_experiment(self, experiment_id: str) -> Any:
        """Return the experiment with this id, even if it is marked as deleted."""
        with self._journal.open() as state:
            return experiment(*find_experiment(state, experiment_id))

    def get_experiment_by_name(self, experiment_name: str) -> Any:
        """Return the experiment of this name, even if it is marked as deleted; None if there is none."""
        with self._journal.open() as state:
            for key, fields in state.experiments.items():
                if fields["name"] == experiment_name:
                    return experiment(key, fields)
        return None

    def delete_experiment(self, experiment_id: str) -> None:
        """Mark an active experiment and its runs in MLflow as deleted."""
        self._move(experiment_id, LifecycleStage.ACTIVE, LifecycleStage.DELETED)

    def restore_experiment(self, experiment_id: str) -> None:
        """Restore a deleted experiment and its runs in MLflow."""
        self._move(experiment_id, LifecycleStage.DELETED, LifecycleStage.ACTIVE)

    def _move(self, experiment_id: str, before: str, after: str) -> None:
        with self._journal.open(writing=True) as state:
            key, fields = find_experiment(state, experiment_id)
            if fields["lifecycle_stage"] != before:
                raise no_experiment(key)
            self._journal.change(EXPERIMENTS, key, {"lifecycle_stage": after, "last_update_time": now()})
            for run_id in [run_id for run_id, run in state.runs.items() if run["experiment_id"] == key]:
                self._journal.change(RUNS, run_id, {"lifecycle_stage": after})

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        """Rename an active experiment."""
        validation._validate_experiment_name(new_name)
        with self._journal.open(writing=True) as state:
            key, fields = find_experiment(state, experiment_id)
            if fields["lifecycle_stage"] != LifecycleStage.ACTIVE:
                raise MlflowException("Cannot rename a non-active experiment.", INVALID_STATE)
            if fields["name"] != new_name:
                self._check_free(state, new_name)
            self._journal.change(EXPERIMENTS, key, {"name": new_name, "last_update_time": now()})

    def set_experiment_tag(self, experiment_id: str, tag: Any) -> None:
        """Set a tag of an active experiment."""
        validation._validate_experiment_tag(tag.key, tag.value)
        with self._journal.open(writing=True) as state:
            key, _ = find_experiment(state, experiment_id, active=True)
            self._journal.change(EXPERIMENTS, key, {"tags": {tag.key: tag.value}})

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        """Remove a tag of an active experiment."""
        with self._journal.open(writing=True) as state:
            found, fields = find_experiment(state, experiment_id, active=True)
            if key not in fields["tags"]:
                raise missing(f"No tag with name: {key} in experiment with id {experiment_id}")
            self._journal.change(EXPERIMENTS, found, {"tags": {key: None}})
