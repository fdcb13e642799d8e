"""Callbacks: their messages are numbered, accepted once, and stored like those of the SDK."""

from __future__ import annotations

import threading
from itertools import count
from typing import Any

import pytest
import redis

from tests.factories import drain, one, rows
from tests.gateway_server import GatewayServer, gateway_settings
from trainwire.gateway.callbacks.bodies import LogsCallback
from trainwire.gateway.resources import open_resources
from trainwire.schemas.keys import HOLD_KEY, KINDS, callback_counters_key, shard_of, stream_key
from trainwire.schemas.tables import training_checkpoints, training_jobs, training_logs, training_metrics
from trainwire.workers.resources import Resources

_jobs = count(9_000)


@pytest.fixture
def job() -> int:
    """The number of a job that no other test has."""
    return next(_jobs)


def drain_all(resources: Resources, job: int) -> None:
    """Store the messages of a job."""
    for kind in KINDS:
        drain(resources, kind, job)


def test_callbacks_report_a_whole_training(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A job with progress, lines, a checkpoint and a completion is provably complete; 0.0 is a value."""
    metrics = {"loss": 0.0, "accuracy": 0.0, "extra_metrics": {"f1": "NaN", "zero": 0.0}, "other": 1}
    accepted = gateway.post(
        f"/jobs/{job}/callback/progress",
        {
            "status": "running",
            "current_epoch": 0,
            "total_epochs": 4,
            "metrics": metrics,
            "name": "digits",
            "params": {"lr": 0.0},
            "checkpoint_path": "s3://b/last.pt",
            "best_checkpoint_path": "s3://b/best.pt",
        },
    )
    assert accepted == {"status": "accepted", "job_id": job}
    gateway.post(f"/jobs/{job}/callback/logs", {"lines": ["a", "<b>\x00"], "levels": ["INFO", None]})
    gateway.post(f"/jobs/{job}/callback/checkpoint", {"uri": "s3://b/1.pt", "kind": "epoch", "epoch": 0})
    drain_all(resources, job)
    row = one(resources.engine, training_metrics, job_id=job)
    assert (row["loss"], row["accuracy"], row["epoch"], row["checkpoint_path"]) == (0.0, 0.0, 0, "s3://b/last.pt")
    assert row["extra_metrics"] == {"f1": "NaN", "zero": 0.0, "other": 1.0}
    assert rows(resources.engine, training_logs, "content", "level") == [("a", "INFO"), ("<b>␀", None)]
    state = one(resources.engine, training_jobs, id=job)
    assert (state["status"], state["name"], state["current_epoch"], state["progress_percent"]) == (
        *("running", "digits"),
        *(0, 0.0),
    )
    assert state["best_checkpoint_path"] == "s3://b/best.pt"
    end = {"status": "completed", "exit_code": 0, "final_metrics": {"loss": 0.0}, "total_epochs_completed": 0}
    gateway.post(f"/jobs/{job}/callback/completion", end)
    drain_all(resources, job)
    state = one(resources.engine, training_jobs, id=job)
    assert (state["status"], state["exit_code"], state["final_metrics"]) == ("completed", 0, {"loss": 0.0})
    completeness = gateway.get(f"/jobs/{job}/completeness")
    assert (completeness["state"], completeness["produced"]) == ("complete", 6)


def test_a_failure_has_its_traceback(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A completion with only a non-zero exit code is a failure."""
    end = {"exit_code": 3, "error_message": "no", "traceback": "File 1"}
    gateway.post(f"/jobs/{job}/callback/completion", end)
    drain_all(resources, job)
    shown = gateway.get(f"/jobs/{job}")
    assert (shown["status"], shown["exit_code"], shown["traceback"]) == ("failed", 3, "TRACEBACK:\nFile 1")


def test_a_repetition_is_taken_once(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A repeated request with the same key is stored once; the key is refused for another request."""
    path, headers = f"/jobs/{job}/callback/logs", {"Idempotency-Key": "one"}
    answers = [gateway.request("POST", path, json={"lines": ["a"]}, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 202]
    assert ["Idempotency-Replayed" in answer.headers for answer in answers] == [False, True, True]
    assert answers[0].json() == answers[1].json()
    refusal = gateway.post(path, {"lines": ["b"]}, status=422, headers=headers)
    assert refusal["type"] == "urn:trainwire:problem:key-taken"
    gateway.post(path, {"lines": ["b"]}, headers={"Idempotency-Key": "two"})
    drain_all(resources, job)
    assert rows(resources.engine, training_logs, "seq", "content") == [(1, "a"), (2, "b")]


class LosesAnswers(redis.Connection):
    """A connection that breaks after the command was executed, and before the reply arrives."""

    left = 0

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return a reply, or fail like a broken connection."""
        answer = super().read_response(*args, **kwargs)
        if self.left and answer and isinstance(answer, list) and answer[0] == b"new":
            type(self).left -= 1
            raise redis.ConnectionError("reset by peer")
        return answer


def test_a_lost_answer_of_redis_doubles_nothing(
    database_url: str,
    redis_url: str,
    resources: Resources,
    job: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If Redis' reply is lost, the repeated command appends nothing twice."""
    found = open_resources(gateway_settings(database_url, redis_url))
    found.redis.connection_pool.connection_class = LosesAnswers
    monkeypatch.setattr(LosesAnswers, "left", 1)
    body = LogsCallback(lines=["a"])
    assert not found.callbacks.put(job, body.attempt, body.messages()).is_repeated
    assert LosesAnswers.left == 0
    found.close()
    drain_all(resources, job)
    assert rows(resources.engine, training_logs, "content") == ["a"]


def test_many_at_once_leave_no_hole(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """Concurrent requests get consecutive numbers."""

    def post_lines(number: int) -> None:
        for each in range(5):
            gateway.post(f"/jobs/{job}/callback/logs", {"lines": [f"{number} {each}"]})

    threads = [threading.Thread(target=post_lines, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drain_all(resources, job)
    assert len(set(rows(resources.engine, training_logs, "content"))) == 20
    completeness = gateway.get(f"/jobs/{job}/completeness")
    assert (completeness["produced"], completeness["missing"]) == (20, 0)


def test_a_redis_that_forgot_begins_a_new_source(
    gateway: GatewayServer, resources: Resources, client: redis.Redis, job: int
) -> None:
    """After a loss of counters a new source begins, so no new message is taken for a repetition."""
    gateway.post(f"/jobs/{job}/callback/logs", {"lines": ["before"]})
    drain_all(resources, job)
    client.flushdb()
    gateway.post(f"/jobs/{job}/callback/logs", {"lines": ["after"]})
    drain_all(resources, job)
    assert rows(resources.engine, training_logs, "content") == ["before", "after"]
    assert len(set(rows(resources.engine, training_logs, "source"))) == 2


def test_another_attempt_is_begun_by_its_number(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """Late messages do not change a job that has ended; a new attempt number begins a new attempt."""
    gateway.post(f"/jobs/{job}/callback/completion", {"status": "completed"})
    gateway.post(f"/jobs/{job}/callback/progress", {"status": "running", "current_epoch": 1})
    drain_all(resources, job)
    assert gateway.get(f"/jobs/{job}")["status"] == "completed"
    gateway.post(f"/jobs/{job}/callback/progress", {"status": "running", "attempt": 2})
    drain_all(resources, job)
    shown = gateway.get(f"/jobs/{job}")
    assert (shown["status"], shown["attempt"], len(shown["attempts"])) == ("running", 2, 2)


def test_a_path_is_a_checkpoint_once(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """The same best path in several messages is one checkpoint, until it changes."""
    for path in ("s3://b/1.pt", "s3://b/1.pt", "s3://b/2.pt"):
        gateway.post(f"/jobs/{job}/callback/progress", {"best_checkpoint_path": path})
    drain_all(resources, job)
    assert rows(resources.engine, training_checkpoints, "uri") == ["s3://b/1.pt", "s3://b/2.pt"]


def test_trainers_are_asked_to_hold_back(
    gateway: GatewayServer, resources: Resources, client: redis.Redis, job: int
) -> None:
    """While Redis is nearly full callbacks are refused, and nothing of them is stored."""
    client.set(HOLD_KEY, 1)
    answer = gateway.request("POST", f"/jobs/{job}/callback/logs", json={"lines": ["a"]})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.json()["type"] == "urn:trainwire:problem:hold"
    assert not client.exists(callback_counters_key(shard_of(job, 4), job, 0))
    assert not client.exists(stream_key("logs", shard_of(job, resources.settings.ingest_shards)))


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("progress", {"current_epoch": -1}, "current_epoch"),
        ("progress", {"current_epoch": 2**63}, "current_epoch"),
        ("progress", {"progress_percent": "NaN"}, "progress_percent"),
        ("progress", {"metrics": {"loss": "high"}}, "metrics.loss"),
        ("progress", {"metrics": {"odd": "high"}}, "metrics.odd"),
        ("progress", {"metrics": {"loss": False}}, "metrics.loss"),
        ("progress", {"metrics": {"extra_metrics": {"f1": True}}}, "metrics.extra_metrics.f1"),
        ("progress", {"current_epoch": True}, "current_epoch"),
        ("progress", {"status": "completed"}, "status"),
        ("completion", {}, "body"),
        ("completion", {"status": "odd"}, "status"),
        ("completion", {"exit_code": 2**40}, "exit_code"),
        ("logs", {"lines": []}, "lines"),
        ("logs", {"lines": [1]}, "lines.0"),
        ("logs", {"lines": ["a"], "log_type": "debug"}, "log_type"),
        ("checkpoint", {}, "uri"),
        ("checkpoint", {"uri": ""}, "uri"),
    ],
)
def test_a_wrong_field_is_named(
    gateway: GatewayServer, client: redis.Redis, kind: str, body: Any, field: str
) -> None:
    """Invalid fields are refused by name, and nothing is appended to a stream."""
    refusal = gateway.post(f"/jobs/1/callback/{kind}", body, status=422)
    assert [error["field"] for error in refusal["errors"]] == [field]
    assert not list(client.scan_iter("ingest:*"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"lines": ["\xff"]}',
        b'{"lines": ["a"], "ts": [1, 2]}',
        b'{"lines": ["a"], "levels": ["\\ud800"]}',
        b'{"lines": ' + b"[" * 100_000,
        b'{"lines": ["a"], "rank": ' + b"9" * 10_000 + b"}",
    ],
)
def test_broken_bodies_are_refused(gateway: GatewayServer, job: int, raw: bytes) -> None:
    """Arbitrary bytes as a body are answered with a problem of status 4xx."""
    headers = {"Content-Type": "application/json"}
    answer = gateway.request("POST", f"/jobs/{job}/callback/logs", data=raw, headers=headers)
    assert answer.status_code in {400, 422}, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "body", [{"params": {"a": "\ud800"}}, {"params": {"a": "x" * 1_100_000}}, {"name": "\ud800"}]
)
def test_a_body_that_cannot_be_stored_is_refused(gateway: GatewayServer, job: int, body: Any) -> None:
    """Parameters may have any structure that JSON can encode within the limit of size."""
    gateway.post(f"/jobs/{job}/callback/progress", body, status=422)
