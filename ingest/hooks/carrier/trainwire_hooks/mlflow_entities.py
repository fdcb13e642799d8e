"""Builds entities and errors of MLflow 2 and 3, such as `Run` and `MlflowException`, from stored fields."""

from __future__ import annotations

import functools
import inspect
import math
import time
from typing import Any

from mlflow import entities
from mlflow.entities import LifecycleStage, Metric, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.tracking import SEARCH_MAX_RESULTS_THRESHOLD

from .mlflow_journal import Fields, State

MAX_WHOLE = 2**63
LARGEST = 1.7976931348623157e308
"""Largest finite float; stored instead of infinity, as in MLflow's SQL store."""


def experiment(key: str, fields: Fields) -> Any:
    """Build the MLflow `Experiment` with id `key` from its stored fields."""
    tags = [entities.ExperimentTag(name, value) for name, value in fields["tags"].items()]
    return made(entities.Experiment, experiment_id=key, **{**fields, "tags": tags})


def run(state: State, run_id: str) -> Any:
    """Build the MLflow `Run` with id `run_id`, with the value of each metric at its largest step."""
    fields = state.runs[run_id]
    info = made(entities.RunInfo, run_id=run_id, run_uuid=run_id, **fields)
    metrics = []
    for name in fields.get("metrics", ()):
        newest = state.histories[run_id, name].latest
        if newest is not None:
            metrics.append(Metric(name, newest[3], newest[1], newest[0]))
    data = entities.RunData(
        metrics=metrics,
        params=[entities.Param(name, value) for name, value in fields["params"].items()],
        tags=[entities.RunTag(name, value) for name, value in fields["tags"].items()],
    )
    inputs = {
        "dataset_inputs": [_dataset_input(each) for each in fields["datasets"]],
        "model_inputs": _each("LoggedModelInput", [[key] for key in fields["model_inputs"]]),
    }
    outputs = _each("LoggedModelOutput", fields["model_outputs"])
    return made(
        entities.Run,
        run_info=info,
        run_data=data,
        run_inputs=made(entities.RunInputs, **inputs),
        run_outputs=entities.RunOutputs(outputs) if hasattr(entities, "RunOutputs") else None,
    )


def made(entity: Any, **fields: Any) -> Any:
    """Return an object of class `entity` (of MLflow) with the attributes `fields`.

    Attributes that the installed version of MLflow does not have are ignored.
    """
    names = _parameters(entity)
    return entity(**{name: value for name, value in fields.items() if name in names})


@functools.cache
def _parameters(entity: Any) -> frozenset[str]:
    return frozenset(inspect.signature(entity.__init__).parameters)


def _each(name: str, arguments: list[list[Any]]) -> list[Any]:
    entity = getattr(entities, name, None)  # MLflow 3
    return [] if entity is None else [entity(*each) for each in arguments]


def _dataset_input(fields: Fields) -> Any:
    tags = [entities.InputTag(name, value) for name, value in fields["tags"].items()]
    return entities.DatasetInput(entities.Dataset(**fields["dataset"]), tags)


def dataset_fields(given: Any) -> Fields:
    """Return the fields to store for a data set that is an input of a run in MLflow: `dataset` and `tags`."""
    return {"dataset": dict(given.dataset), "tags": as_map(given.tags)}


def as_map(given: Any) -> dict[str, str]:
    """Return MLflow tags or parameters as a dict of key and value, both as texts; {} for None."""
    return {each.key: str(each.value) for each in given or []}


def is_in(view_type: int, stage: str) -> bool:
    """Return whether a search with this `view_type` includes entities of lifecycle `stage` (active or deleted)."""
    return stage in LifecycleStage.view_type_to_stages(view_type or ViewType.ACTIVE_ONLY)


def finite(metric: Any) -> float:
    """Return the metric's value; an infinity becomes the largest float of its sign, as in MLflow's SQL store."""
    value = float(metric.value)
    return math.copysign(LARGEST, value) if math.isinf(value) else value


def whole(value: Any) -> int:
    """Return `value` as a 64-bit integer; raise MLflow's INVALID_PARAMETER_VALUE error if that is impossible."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise invalid(f"{value!r} is no whole number") from exc
    if not -MAX_WHOLE <= number < MAX_WHOLE:
        raise invalid(f"{value!r} is beyond 64 bits")
    return number


def experiment_number(experiment_id: Any) -> int:
    """Return the id of an experiment as a number; raise MLflow's error if it is not a number."""
    try:
        return int(experiment_id)
    except (TypeError, ValueError) as exc:
        raise invalid(f"Invalid experiment ID '{experiment_id}'. Experiment ID must be a valid integer.") from exc


def find_experiment(state: State, experiment_id: Any, *, active: bool = False) -> tuple[str, Fields]:
    """Return the id and the fields of an experiment; without an id, those of the default experiment 0.

    Raise MLflow's error if it does not exist, or if `active` is set and it is deleted.
    """
    key = str(experiment_number(experiment_id or "0"))
    fields = state.experiments.get(key)
    if fields is None:
        raise no_experiment(key)
    if active and fields["lifecycle_stage"] != LifecycleStage.ACTIVE:
        stage = fields["lifecycle_stage"]
        raise invalid(f"The experiment {key} must be in the 'active' state. Current state is {stage}.")
    return key, fields


def no_experiment(key: str) -> MlflowException:
    """Return the exception that MLflow raises for an experiment that does not exist."""
    return missing(f"No Experiment with id={key} exists")


def find_run(state: State, run_id: str) -> Fields:
    """Return the fields of a run in MLflow; raise MLflow's error if it does not exist."""
    fields = state.runs.get(run_id)
    if fields is None:
        raise missing(f"Run with id={run_id} not found")
    return fields


def check_max_results(value: Any) -> None:
    """Raise MLflow's error if `value` is not a valid page size."""
    if value is None or value < 1:
        raise invalid(f"Invalid value {value} for parameter 'max_results' supplied. It must be a positive integer")
    if value > SEARCH_MAX_RESULTS_THRESHOLD:
        raise invalid(
            f"Invalid value {value} for parameter 'max_results' supplied. "
            f"It must be at most {SEARCH_MAX_RESULTS_THRESHOLD}"
        )


def invalid(message: str) -> MlflowException:
    """Return the exception that MLflow raises for an invalid argument."""
    return MlflowException(message, INVALID_PARAMETER_VALUE)


def missing(message: str) -> MlflowException:
    """Return the exception that MLflow raises for an entity that does not exist."""
    return MlflowException(message, RESOURCE_DOES_NOT_EXIST)


def now() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
