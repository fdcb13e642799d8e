"""Names and values that MLflow refuses are adapted; its own validation accepts the results."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwire.workers.sinks.mlflow.rows import AttemptState, MetricRow
from trainwire.workers.sinks.mlflow.rules import (
    FINAL_STATUS,
    MAX_NAME_BYTES,
    MAX_PARAM_CHARS,
    MOST_METRICS,
    MOST_NOTES,
    MOST_OF_AN_ATTEMPT,
    MOST_TEXT_BYTES,
    MetricValue,
    Notes,
    cut,
    metric_requests,
    metrics_of,
    milliseconds,
    params_of,
    provenance_tags,
    run_name,
    safe_name,
    tags_of,
    text_of,
    text_requests,
)

AT = datetime(2026, 9, 21, tzinfo=UTC)


@pytest.fixture(scope="module")
def mlflows() -> Any:
    """MLflow's own rules, without types; imported late: not all test processes need these 200 MB."""
    return import_module("mlflow.utils.validation")


def attempt(**fields: Any) -> AttemptState:
    """An attempt."""
    return AttemptState(attempt=1, status="running", job_created_at=AT, **fields)


def row(values: dict[str, float | str], rank: int | None = None, ts_ms: int = 1, seq: int = 1) -> MetricRow:
    """A row of training_metrics."""
    return MetricRow(seq, 1, rank, "s", ts_ms, 0, values)


@given(name=st.text(max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(mlflows: Any, name: str) -> None:
    """Any name of a metric is adapted to a valid one, deterministically, and a valid one is kept."""
    safe = safe_name(name)
    mlflows._validate_metric_name(safe)
    assert 1 <= len(safe.encode()) <= MAX_NAME_BYTES
    assert safe_name(safe) == safe


@pytest.mark.parametrize("name", ["loss", "val/loss", "a b", "ü:1.5-x", "x" * 250, "a...", " "])
def test_a_valid_name_is_unchanged(name: str) -> None:
    """A name within MLflow's rules is not changed."""
    assert safe_name(name) == name


@given(st.lists(st.text(alphabet="a@/.\n_", max_size=5), unique=True, max_size=30))
def test_two_names_never_become_one(names: list[str]) -> None:
    """Names that differ only in replaced characters differ in their hash."""
    assert len({safe_name(name) for name in names}) == len(names)


def test_adapted_names_can_be_read() -> None:
    """Allowed characters of the name are kept, and a note has the new name."""
    notes = Notes()
    (metric,) = metrics_of(row({"acc@1": 0.5}, rank=3), notes)
    assert metric.key.startswith("rank_3/acc_1-")
    assert notes.texts == {"metric rank_3/acc@1": f"is called {metric.key}"}
    assert safe_name("../..").startswith("unnamed-")


def test_rank_zero_and_no_rank_are_the_run_itself() -> None:
    """Metrics of ranks other than 0 have a prefix."""
    keys = [[metric.key for metric in metrics_of(row({"loss": 1.0}, rank=rank), Notes())] for rank in (None, 0, 2)]
    assert keys == [["loss"], ["loss"], ["rank_2/loss"]]


def test_times_before_1970_are_1970() -> None:
    """A negative time, which MLflow refuses, becomes 0."""
    notes = Notes()
    (metric,) = metrics_of(row({"loss": 1.0}, ts_ms=-5), notes)
    assert metric.timestamp == 0
    assert "times" in notes.texts
    assert milliseconds(datetime(1950, 1, 1, tzinfo=UTC)) == 0


def test_requests_are_sorted_and_within_the_limits(mlflows: Any) -> None:
    """Values are sorted by key, step and time, in requests of at most 1,000 values and a megabyte."""
    origin = row({})
    short = [MetricValue(f"k{n % 7}", 3000 - n, n, 1.0, origin) for n in range(2500)]
    requests = list(metric_requests(short))
    assert [len(request) for request in requests] == [MOST_METRICS, MOST_METRICS, 500]
    assert [metric[:3] for request in requests for metric in request] == sorted(metric[:3] for metric in short)
    for name in ("é" * 1000, "漢" * 1000, "x" * 1000):
        long = [
            MetricValue(safe_name(name), -(2**63) + n, 10**14, -1.7976931348623157e308, origin)
            for n in range(1000)
        ]
        (request,) = metric_requests(long)
        body = {"run_id": "0" * 32, "metrics": [metric.document() for metric in request]}
        assert len(json.dumps(body)) < mlflows.MAX_BATCH_LOG_REQUEST_SIZE


def test_params_are_text_as_mlflows_client_makes_it() -> None:
    """Numbers, booleans and None are converted by `str`; lists and maps are JSON."""
    assert [text_of(value) for value in (1, 0.1, 1e-05, True, None, "x", [1, None], {"a": "ä"})] == [
        *("1", "0.1", "1e-05", "True", "None", "x"),
        *("[1, null]", '{"a": "ä"}'),
    ]


@given(values=st.dictionaries(st.text(max_size=300), st.text(max_size=10) | st.none() | st.floats(), max_size=20))
def test_every_param_and_tag_is_one_that_mlflow_takes(mlflows: Any, values: dict[str, Any]) -> None:
    """Every param and tag passes MLflow's own validation, and none is lost."""
    params, tags = params_of(attempt(params=values), Notes()), tags_of(attempt(tags=values), Notes())
    assert len(params) == len(tags) == len(values)
    for name, value in params.items():
        mlflows._validate_param(name, value)
    for name, value in tags.items():
        mlflows._validate_tag(name, value)


def test_long_values_are_cut_and_marked() -> None:
    """A shortened value has the allowed length and ends with the original length."""
    notes = Notes()
    params = params_of(attempt(params={"long": "v" * 20_000, "fits": "v" * MAX_PARAM_CHARS}), notes)
    assert (len(params["long"]), len(params["fits"])) == (MAX_PARAM_CHARS, MAX_PARAM_CHARS)
    assert params["long"].endswith("v… (20,000 characters)")
    assert notes.texts == {"param long": "is cut after 6,000 of 20,000 characters"}
    assert cut("x", "short", 10, notes) == "short"


def test_params_are_sent_within_the_limits() -> None:
    """Params are sent in order, at most a hundred and half a megabyte per request."""
    short = {f"p{n}": "1" for n in range(250)}
    assert [len(request) for request in text_requests(short)] == [100, 100, 50]
    long = {f"p{n}": "漢" * MAX_PARAM_CHARS for n in range(100)}
    requests = list(text_requests(long))
    assert [item for request in requests for item in request] == list(long.items())
    assert all(sum(len(value.encode()) for _, value in request) <= MOST_TEXT_BYTES for request in requests)
    assert list(text_requests({})) == []


def test_too_many_params_are_the_first_ones() -> None:
    """Only the first params of a run with thousands are sent, because MLflow's page cannot show more."""
    notes = Notes()
    params = params_of(attempt(params={f"p{n}": n for n in range(3000)}), notes)
    assert len(params) == MOST_OF_AN_ATTEMPT
    assert notes.texts == {"params": "only the first 1,000 of 3,000 are in MLflow"}


def test_tags_that_are_not_the_trainers_to_set() -> None:
    """The trainer's tags with names reserved by MLflow or trainwire get a prefix."""
    tags = tags_of(attempt(tags={"mlflow.runName": "a", "job_id": "b", "trainwire.x": "c", "team": "d"}), Notes())
    assert tags == {"user.mlflow.runName": "a", "user.job_id": "b", "user.trainwire.x": "c", "team": "d"}


def test_notes_are_bounded() -> None:
    """Ten thousand odd names result in a bounded note."""
    notes = Notes()
    for number in range(10_000):
        notes.add(f"metric {number} " + "x" * 1000, "is called something else")
    assert len(notes.texts) == MOST_NOTES + 1
    assert notes.texts["more"] == "more names and values were adapted than are noted"
    assert max(map(len, notes.texts)) < 110


@pytest.mark.parametrize(
    ("status", "final"),
    [
        ("completed", "FINISHED"),
        ("failed", "FAILED"),
        ("preempted", "KILLED"),
        ("lost", "KILLED"),
        ("running", None),
        ("stalled", None),
    ],
)
def test_how_a_run_ends(status: str, final: str | None) -> None:
    """A run ends as its attempt did; the run of a stalled attempt stays open."""
    assert FINAL_STATUS.get(status) == final


@pytest.mark.parametrize(
    ("name", "called"), [(None, "job 7"), (" \n", "job 7"), ("a\nb", "a b"), ("n" * 300, "n" * 250)]
)
def test_a_run_has_a_name_of_one_line(name: str | None, called: str) -> None:
    """A run's name is the trainer's, on one line, or the job's number."""
    assert run_name(7, attempt(name=name)) == called


def test_values_go_as_they_are() -> None:
    """Zero is a value, and NaN is sent by its JSON name."""
    values: dict[str, float | str] = {"loss": 0.0, "odd": "NaN"}
    assert [metric.document()["value"] for metric in metrics_of(row(values), Notes())] == [0.0, "NaN"]


def test_code_and_machine_become_the_tags_of_mlflows_own_client() -> None:
    """Commit, branch, remote and user have MLflow's names; items of another form are left out."""
    provenance = {
        "git": {"commit": "7bea80b", "branch": "main", "remote": "https://me:***@example.com/r.git"},
        "user": "ada",
        "host": {"name": "node-1"},
        "command": ["python", "train.py", "--name", "a b"],
    }
    tags = provenance_tags(attempt(provenance=provenance), Notes())
    assert tags == {
        "mlflow.source.git.commit": "7bea80b",
        "mlflow.source.git.branch": "main",
        "mlflow.source.git.repoURL": "https://me:***@example.com/r.git",
        "mlflow.user": "ada",
        "trainwire.host": "node-1",
        "trainwire.command": "python train.py --name 'a b'",
    }
    assert provenance_tags(attempt(provenance={"git": "x", "command": 3, "host": None}), Notes()) == {}
    assert provenance_tags(attempt(), Notes()) == {}
