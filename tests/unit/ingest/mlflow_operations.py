"""Operations of MLflow's client, run as a script; prints the result or the error of each as JSON.

Run ids, times and folders differ from store to store: ids are replaced by their order, the others left out.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

client: Any = MlflowClient()
fluent: Any = mlflow
results: dict[str, Any] = {}
known_ids: dict[str, str] = {}


def operation(call: Callable[[], Any]) -> Callable[[], Any]:
    """Run the function, and keep its result or error under its name."""
    name = call.__name__
    try:
        result = plain(call())
    except MlflowException as exc:
        result = f"{type(exc).__name__} {exc.error_code}: {masked(str(exc))[:70]}"
    except Exception as exc:  # noqa: BLE001 - compared with that of the other store
        result = f"{type(exc).__name__}: {masked(str(exc))[:70]}"
    results[name] = result
    time.sleep(0.003)  # runs are sorted by their start in milliseconds
    return call


def masked(text: str) -> str:
    """Return the text with ids replaced by numbers in the order of their appearance, without folders."""
    text = re.sub(r"(m-)?[0-9a-f]{32}", lambda match: known_ids.setdefault(match[0], f"id{len(known_ids)}"), text)
    text = re.sub(r"\{'[^}]*\}", "{...}", text)  # a set of names, in any order
    return re.sub(r"(trainwire:|file://)?/[^ '\"]*?(?=/\d+(/|$))", "", text)


def plain(value: Any) -> Any:
    """Return a result as JSON values."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: plain(content) for key, content in sorted(value.items()) if "mlflow.source" not in str(key)}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, int | bool) else repr(type(value))


def run_of(run: Any) -> dict[str, Any]:
    """Return all of a run that is comparable."""
    return {
        "info": [run.info.experiment_id, run.info.status, run.info.lifecycle_stage, run.info.run_name],
        "ends": run.info.end_time,
        "user": run.info.user_id,
        "artifacts": run.info.artifact_uri,
        "metrics": run.data.metrics,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name != "mlflow.user"},
        "datasets": [[each.dataset.name, each.dataset.digest, each.dataset.source_type, each.dataset.schema]
                     + [[tag.key, tag.value] for tag in each.tags] for each in run.inputs.dataset_inputs],
    }  # fmt: skip


def experiment_of(found: Any) -> Any:
    """Return all of an experiment that is comparable."""
    return found and [found.experiment_id, found.name, found.lifecycle_stage, found.tags, found.artifact_location]


def history(run_id: str, name: str) -> list[Any]:
    """Return the points of a metric."""
    return [[each.key, each.value, each.timestamp, each.step] for each in client.get_metric_history(run_id, name)]


def names(runs: Any) -> list[str]:
    """Return the names of runs in their order."""
    return [run.info.run_name for run in runs]


first = client.create_run("0", start_time=1000, run_name="first", tags={"kind": "a"}).info.run_id
second = client.create_run("0", start_time=2000, run_name="second").info.run_id
third = client.create_run("0", start_time=3000, run_name="third", tags={"kind": "b"}).info.run_id
other = client.create_experiment("other", tags={"team": "x"})

# Values


@operation
def new_run() -> Any:
    return run_of(client.get_run(first))


@operation
def log_metric() -> Any:
    client.log_metric(first, "loss", 0.5, timestamp=10, step=1)
    client.log_metric(first, "loss", 0.25, timestamp=20, step=2)
    return run_of(client.get_run(first))


@operation
def log_late_step() -> Any:
    client.log_metric(first, "loss", 9, timestamp=30, step=0)
    return [client.get_run(first).data.metrics, history(first, "loss")]


@operation
def log_same_point() -> Any:
    client.log_metric(first, "loss", 0.5, timestamp=10, step=1)
    return history(first, "loss")


@operation
def log_other_value_of_the_same_step() -> Any:
    client.log_metric(first, "loss", 0.75, timestamp=20, step=2)
    return [history(first, "loss"), client.get_run(first).data.metrics]


@operation
def log_nan() -> Any:
    client.log_metric(first, "nan", math.nan, timestamp=1, step=1)
    client.log_metric(first, "nan", -1.0, timestamp=1, step=1)
    client.log_metric(first, "nan", math.nan, timestamp=1, step=1)
    return [history(first, "nan"), client.get_run(first).data.metrics]


@operation
def log_infinities() -> Any:
    client.log_metric(first, "high", math.inf, timestamp=1)
    client.log_metric(first, "low", -math.inf, timestamp=1)
    return [history(first, "high"), history(first, "low")]


@operation
def log_negative_step() -> Any:
    client.log_metric(first, "early", 1, timestamp=1, step=-3)
    client.log_metric(first, "early", 2, timestamp=2, step=-5)
    return [history(first, "early"), client.get_run(first).data.metrics["early"]]


@operation
def log_text_as_metric() -> Any:
    client.log_metric(first, "text", "words")


@operation
def log_bool_as_metric() -> Any:
    client.log_metric(first, "flag", True, timestamp=1)
    return history(first, "flag")


@operation
def log_none_as_metric() -> Any:
    client.log_metric(first, "none", None)


@operation
def log_negative_time() -> Any:
    client.log_metric(first, "loss", 1, timestamp=-1)


@operation
def log_metric_with_a_bad_name() -> Any:
    client.log_metric(first, "a@b", 1)


@operation
def log_metric_with_a_path() -> Any:
    client.log_metric(first, "../b", 1)


@operation
def log_metric_with_a_long_name() -> Any:
    client.log_metric(first, "x" * 251, 1)


@operation
def log_metric_with_slashes() -> Any:
    client.log_metric(first, "a/b c.d-e_f", 1, timestamp=5)
    return history(first, "a/b c.d-e_f")


@operation
def history_of_an_unknown_metric() -> Any:
    return history(first, "never")


@operation
def history_of_an_unknown_run() -> Any:
    return history("0" * 32, "loss")


# Parameters


@operation
def log_param() -> Any:
    client.log_param(first, "lr", 0.1)
    client.log_param(first, "none", None)
    return client.get_run(first).data.params


@operation
def log_same_param() -> Any:
    client.log_param(first, "lr", 0.1)
    return client.get_run(first).data.params


@operation
def change_param() -> Any:
    client.log_param(first, "lr", 0.2)


@operation
def change_param_in_a_batch() -> Any:
    client.log_batch(first, metrics=[Metric("in batch", 1, 1, 1)], params=[Param("lr", "0.3"), Param("new", "1")])


@operation
def after_the_refused_batch() -> Any:
    return [client.get_run(first).data.params, history(first, "in batch")]


@operation
def log_param_with_a_long_value() -> Any:
    client.log_param(first, "long", "x" * 6001)
    return len(client.get_run(first).data.params["long"])


@operation
def log_param_with_a_long_name() -> Any:
    client.log_param(first, "y" * 251, 1)


@operation
def log_param_with_a_bad_name() -> Any:
    client.log_param(first, "a//b", 1)


@operation
def log_empty_param() -> Any:
    client.log_param(first, "", 1)


# Batches


@operation
def log_batch() -> Any:
    metrics = [Metric("batch", index / 2, index, index) for index in range(5)]
    client.log_batch(second, metrics, [Param("p", "1"), Param("q", "2")], [RunTag("t", "3")])
    return run_of(client.get_run(second))


@operation
def log_batch_with_equal_points() -> Any:
    client.log_batch(second, [Metric("twice", 1, 1, 1), Metric("twice", 1, 1, 1), Metric("twice", 2, 1, 1)])
    return history(second, "twice")


@operation
def log_batch_with_one_param_twice() -> Any:
    client.log_batch(second, params=[Param("r", "1"), Param("r", "2")])


@operation
def log_batch_of_too_many() -> Any:
    client.log_batch(second, [Metric("many", 1, index, index) for index in range(1001)])


@operation
def log_batch_of_too_many_params() -> Any:
    client.log_batch(second, params=[Param(f"p{index}", "1") for index in range(101)])


@operation
def log_batch_with_a_bad_name() -> Any:
    client.log_batch(second, [Metric("good", 1, 1, 1), Metric("b@d", 1, 1, 1)])


@operation
def after_the_bad_name() -> Any:
    return run_of(client.get_run(second))


@operation
def log_empty_batch() -> Any:
    client.log_batch(second)
    return run_of(client.get_run(second))


@operation
def history_by_pages() -> Any:
    found = client._tracking_client.store.get_metric_history(second, "batch", max_results=2)
    rest = client._tracking_client.store.get_metric_history(second, "batch", 2, found.token)
    return [[each.step for each in found], [each.step for each in rest], bool(rest.token)]


# Tags and names


@operation
def set_tag() -> Any:
    client.set_tag(first, "kind", "c")
    client.set_tag(first, "number", 7)
    return client.get_run(first).data.tags


@operation
def set_long_tag() -> Any:
    client.set_tag(first, "long", "x" * 9000)
    return len(client.get_run(first).data.tags["long"])


@operation
def set_tag_with_a_bad_name() -> Any:
    client.set_tag(first, "a?b", 1)


@operation
def delete_tag() -> Any:
    client.delete_tag(first, "long")
    return client.get_run(first).data.tags


@operation
def delete_unknown_tag() -> Any:
    client.delete_tag(first, "never")


@operation
def rename_by_tag() -> Any:
    client.set_tag(first, "mlflow.runName", "renamed")
    return run_of(client.get_run(first))


@operation
def rename_by_update() -> Any:
    client.update_run(first, name="first")
    return run_of(client.get_run(first))


@operation
def two_names() -> Any:
    client.create_run("0", run_name="one", tags={"mlflow.runName": "two"})


@operation
def name_by_tag() -> Any:
    return run_of(client.create_run(other, tags={"mlflow.runName": "by tag"}))


# States


@operation
def end_run() -> Any:
    client.set_terminated(first, end_time=5000)
    return run_of(client.get_run(first))


@operation
def log_after_the_end() -> Any:
    client.log_metric(first, "after", 1, timestamp=1)
    return client.get_run(first).data.metrics["after"]


@operation
def fail_run() -> Any:
    client.set_terminated(second, "FAILED", end_time=6000)
    return run_of(client.get_run(second))


@operation
def end_in_an_unknown_state() -> Any:
    client.set_terminated(third, "BROKEN")


@operation
def delete_run() -> Any:
    client.delete_run(third)
    return run_of(client.get_run(third))


@operation
def log_to_a_deleted_run() -> Any:
    client.log_metric(third, "loss", 1)


@operation
def tag_a_deleted_run() -> Any:
    client.set_tag(third, "t", 1)


@operation
def restore_run() -> Any:
    client.restore_run(third)
    client.log_metric(third, "loss", 1, timestamp=1)
    return run_of(client.get_run(third))


@operation
def get_unknown_run() -> Any:
    client.get_run("0" * 32)


@operation
def delete_unknown_run() -> Any:
    client.delete_run("0" * 32)


@operation
def log_to_an_unknown_run() -> Any:
    client.log_metric("0" * 32, "loss", 1)


# Searching


def found(query: str = "", view: int = ViewType.ACTIVE_ONLY, **arguments: Any) -> list[str]:
    """Return the names of the runs that match."""
    return names(client.search_runs(["0"], query, view, **arguments))


@operation
def search_all() -> Any:
    return found()


@operation
def search_by_metric() -> Any:
    return [
        found("metrics.loss > 0.6"),
        found("metrics.loss <= 0.75 and params.lr = '0.1'"),
        found("metrics.x = 1"),
    ]


@operation
def search_by_tag() -> Any:
    return [
        found("tags.kind = 'b'"),
        found("tags.kind != 'b'"),
        found("tags.kind LIKE '%c'"),
        found("tag.t = '3'"),
    ]


@operation
def search_by_attribute() -> Any:
    return [
        found(f"attributes.{query}") for query in ("status = 'FAILED'", "run_name LIKE 'f%'", "start_time > 1500")
    ]


@operation
def search_in_order() -> Any:
    return [
        found(order_by=[order])
        for order in ("start_time ASC", "metrics.loss ASC", "metrics.loss DESC", "params.lr ASC", "tags.kind DESC")
    ]


@operation
def search_by_pages() -> Any:
    page = client.search_runs(["0"], max_results=2)
    rest = client.search_runs(["0"], max_results=2, page_token=page.token)
    return [names(page), names(rest), rest.token]


@operation
def search_deleted() -> Any:
    client.delete_run(third)
    both = [found(view=ViewType.DELETED_ONLY), found(view=ViewType.ALL), found()]
    client.restore_run(third)
    return both


@operation
def search_with_a_bad_filter() -> Any:
    return found("metrics.loss >> 1")


@operation
def search_for_too_many() -> Any:
    return found(max_results=50001)


@operation
def search_for_none() -> Any:
    return found(max_results=0)


@operation
def search_another_experiment() -> Any:
    return [names(client.search_runs([other])), names(client.search_runs(["77"])), names(client.search_runs([]))]


# Experiments


@operation
def get_experiments() -> Any:
    return [experiment_of(client.get_experiment("0")), experiment_of(client.get_experiment_by_name("other"))]


@operation
def get_unknown_experiments() -> Any:
    return [client.get_experiment_by_name("never"), client.get_experiment("77")]


@operation
def get_experiment_by_a_word() -> Any:
    return client.get_experiment("words")


@operation
def create_experiment_again() -> Any:
    try:
        client.create_experiment("other")
    except MlflowException as exc:
        return [exc.error_code, str(exc)[:38]]


@operation
def create_experiment_without_a_name() -> Any:
    return client.create_experiment("")


@operation
def tag_experiment() -> Any:
    client.set_experiment_tag(other, "more", "y")
    return client.get_experiment(other).tags


@operation
def rename_experiment() -> Any:
    client.rename_experiment(other, "another")
    return [experiment_of(client.get_experiment(other)), client.get_experiment_by_name("other")]


@operation
def delete_experiment() -> Any:
    client.delete_experiment(other)
    return [experiment_of(client.get_experiment(other)), names(client.search_runs([other]))]


@operation
def run_in_a_deleted_experiment() -> Any:
    client.create_run(other)


@operation
def rename_a_deleted_experiment() -> Any:
    client.rename_experiment(other, "yet another")


@operation
def set_a_deleted_experiment() -> Any:
    mlflow.set_experiment("another")


@operation
def delete_experiment_again() -> Any:
    client.delete_experiment(other)


@operation
def restore_experiment() -> Any:
    client.restore_experiment(other)
    return [experiment_of(client.get_experiment(other)), names(client.search_runs([other]))]


@operation
def search_experiments() -> Any:
    client.create_experiment("third", tags={"team": "z"})
    queries = ("", "name LIKE 'a%'", "tags.team = 'z'")
    return [[each.name for each in client.search_experiments(filter_string=query)] for query in queries]


@operation
def run_in_an_unknown_experiment() -> Any:
    client.create_run("77")


# Data sets, files, models


@operation
def log_dataset() -> Any:
    import numpy as np

    data = fluent.data.from_numpy(np.array([1, 2]), source="data.csv", name="points")
    with mlflow.start_run(run_id=second):
        mlflow.log_input(data, context="training")
        mlflow.log_input(data, context="training")
    return run_of(client.get_run(second))["datasets"]


@operation
def search_by_dataset() -> Any:
    return [
        found("dataset.name = 'points'"),
        found("dataset.name = 'never'"),
        found("datasets.context = 'training'"),
    ]


@operation
def log_files() -> Any:
    client.log_text(first, "words", "notes/a.txt")
    client.log_dict(first, {"a": 1}, "b.json")
    listed = [[each.path, each.is_dir, each.file_size] for each in client.list_artifacts(first)]
    return [
        listed,
        [each.path for each in client.list_artifacts(first, "notes")],
        client.list_artifacts(first, "no"),
    ]


@operation
def read_files() -> Any:
    path = Path(client.download_artifacts(first, "notes/a.txt"))
    return [path.read_text(), mlflow.artifacts.load_dict(f"runs:/{first}/b.json")]


@operation
def read_unknown_file() -> Any:
    try:
        client.download_artifacts(first, "never.txt")
    except MlflowException as exc:
        return exc.error_code


@operation
def logged_models() -> Any:
    model = client.create_logged_model("0", name="model", source_run_id=first, tags={"a": "1"}, params={"p": "1"})
    client.set_logged_model_tags(model.model_id, {"b": "2"})
    client.delete_logged_model_tag(model.model_id, "a")
    client.log_metric(first, "quality", 0.5, timestamp=1, model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")
    found = client.get_logged_model(model.model_id)
    values = [[each.key, each.value, each.run_id] for each in found.metrics]
    return [found.name, str(found.status), found.tags, found.params, values, found.source_run_id]


@operation
def search_logged_models() -> Any:
    queries = (None, "name = 'model'", "tags.b = '2'", "metrics.quality > 0.7")
    return [[each.name for each in client.search_logged_models(["0"], query)] for query in queries]


@operation
def delete_logged_model() -> Any:
    (model,) = client.search_logged_models(["0"])
    client.delete_logged_model(model.model_id)
    return [len(client.search_logged_models(["0"])), client.get_logged_model(model.model_id)]


# The fluent functions


@operation
def fluent_run() -> Any:
    with mlflow.start_run(experiment_id="0", run_name="fluent", tags={"a": "b"}, description="words") as run:
        mlflow.log_params({"x": 1, "y": [1, 2]})
        mlflow.log_metrics({"a": 1, "b": 2}, step=3, timestamp=4)
        mlflow.set_tags({"c": "d"})
        with mlflow.start_run(run_name="child", nested=True) as child:
            mlflow.log_metric("a", 3, timestamp=4)
    parent = client.get_run(run.info.run_id)
    inner = client.get_run(child.info.run_id)
    return [{**run_of(each), "ends": bool(each.info.end_time)} for each in (parent, inner)]


@operation
def failed_run() -> Any:
    try:
        with mlflow.start_run(run_name="failed") as run:
            raise ValueError("of the training")  # noqa: TRY301
    except ValueError:
        return client.get_run(run.info.run_id).info.status


@operation
def continued_run() -> Any:
    with mlflow.start_run(run_id=first):
        states = [client.get_run(first).info.status]
        mlflow.log_metric("continued", 1, timestamp=1)
    return [*states, client.get_run(first).info.status, history(first, "continued")]


@operation
def asynchronous() -> Any:
    with mlflow.start_run(run_name="asynchronous") as run:
        for step in range(20):
            mlflow.log_metric("loss", step, step=step, timestamp=step + 1, synchronous=False)
        mlflow.log_params({"late": 1}, synchronous=False)
        mlflow.flush_async_logging()
    return [history(run.info.run_id, "loss"), client.get_run(run.info.run_id).data.params]


@operation
def frame_of_runs() -> Any:
    frame = mlflow.search_runs(experiment_ids=["0"], filter_string="metrics.continued = 1")
    return sorted(column for column in frame.columns if "mlflow" not in column)


@operation
def last_run() -> Any:
    return [fluent.last_active_run().info.run_name, mlflow.get_parent_run(first)]


json.dump(results, sys.stdout)
