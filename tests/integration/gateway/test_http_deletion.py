"""Deletion over HTTP: for admins only, with a dry run, carried out by workers, idempotent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import redis
from sqlalchemy import text

from tests.factories import Sender, completion, drain, logs, one, rows
from tests.gateway_server import GatewayServer
from tests.integration.gateway.test_authorization import bearer, make_token
from trainwire.gateway.auth.tokens import Role
from trainwire.gateway.routes.deletion_routes import forget
from trainwire.schemas.keys import acks_key
from trainwire.schemas.tables import deleted_jobs, training_jobs, training_logs
from trainwire.stack.persisted_config import free_port
from trainwire.stores.files.s3 import open_s3
from trainwire.stores.postgres.deletion import Choice, begin_deletion
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.resources import Resources


@pytest.fixture
def job(resources: Resources, sender: Sender) -> int:
    """A job that has ended."""
    sender.send(logs("a", "b"), job=42)
    sender.send(completion(), job=42)
    for kind in ("logs", "completions"):
        drain(resources, kind, 42)
    return 42


def delete(gateway: GatewayServer, path: str, status: int = 202, **options: Any) -> Any:
    """Send DELETE, return the document of the response."""
    answer = gateway.request("DELETE", path, **options)
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


@pytest.mark.parametrize(("role", "status"), [(None, 401), ("viewer", 403), ("trainer", 403), ("admin", 202)])
def test_admins_delete(
    guarded: GatewayServer, resources: Resources, job: int, role: Role | None, status: int
) -> None:
    """Only admins delete jobs, read the plan and free the number; the admin's token is recorded."""
    headers = {} if role is None else bearer(make_token(resources, role))
    is_admin = status == 202
    delete(guarded, f"/jobs/{job}?dry_run=true", 200 if is_admin else status, headers=headers)
    delete(guarded, f"/jobs/{job}", status, headers=headers)
    delete(guarded, f"/jobs/{job}/deletion", 409 if is_admin else status, headers=headers)
    if is_admin:
        assert one(resources.engine, deleted_jobs, job_id=job)["deleted_by"] == "gateway, token 1"
    else:
        assert rows(resources.engine, training_jobs, "id", order=["id"]) == [job]


def test_a_dry_run_deletes_nothing(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A dry run returns the plan and deletes nothing."""
    planned = delete(gateway, f"/jobs/{job}?dry_run=true", 200)
    assert (planned["state"], planned["plan"]["rows"]["training_logs"]) == ("planned", 2)
    assert rows(resources.engine, training_jobs, "id", order=["id"]) == [job]
    assert gateway.request("GET", f"/jobs/{job}/deletion").status_code == 404


def test_the_answer_comes_at_once_and_workers_do_the_rest(
    gateway: GatewayServer, resources: Resources, job: int, sender: Sender
) -> None:
    """The job is in no list any more; its deletion has a status; a repetition is the same deletion."""
    begun = delete(gateway, f"/jobs/{job}?reason=personal%20data&keep_loki=true")
    assert (begun["state"], begun["reason"]) == ("deleting", "personal data")
    assert begun["deleted_by"] == "gateway, without a token"
    assert gateway.get("/jobs")["items"] == []
    assert gateway.get(f"/jobs/{job}", 404)["type"] == "urn:trainwire:problem:unknown-job"
    assert rows(resources.engine, training_logs, "seq") == [1, 2]
    assert delete(gateway, f"/jobs/{job}?keep_loki=true")["deleted_at"] == begun["deleted_at"]
    JobDeleter(resources, open_s3).run_due()
    done = gateway.get(f"/jobs/{job}/deletion")
    assert (done["state"], done["parts"]["postgres"]["state"]) == ("deleted", "done")
    assert rows(resources.engine, training_logs, "seq") == []
    assert delete(gateway, f"/jobs/{job}?keep_loki=true", 200)["state"] == "deleted"
    assert delete(gateway, f"/jobs/{job}?dry_run=true", 200)["state"] == "deleted"
    sender.send(logs("late"), job=job)
    drain(resources, job=job)
    assert gateway.get(f"/jobs/{job}/deletion")["discarded_messages"] == 1


def test_a_job_that_has_not_ended_is_refused(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """The problem names the status and the parameter that forces it."""
    with resources.engine.begin() as connection:
        connection.execute(text("UPDATE training_jobs SET status = 'running'"))
    problem = delete(gateway, f"/jobs/{job}", 409)
    assert problem["type"] == "urn:trainwire:problem:still-at-work"
    assert "job 42 is running" in problem["detail"]
    assert "?force=true" in problem["detail"]
    assert delete(gateway, f"/jobs/{job}?force=true")["state"] == "deleting"


def test_an_unknown_job_is_a_problem(gateway: GatewayServer) -> None:
    """An unknown job is 404, with and without a dry run."""
    for path in ("/jobs/7", "/jobs/7?dry_run=true", "/jobs/7/deletion"):
        assert delete(gateway, path, 404)["status"] == 404
    assert delete(gateway, "/jobs/seven", 422)["errors"][0]["field"] == "job_id"


def test_a_number_is_freed(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A number is freed only after the deletion is complete; then a callback creates the job anew."""
    delete(gateway, f"/jobs/{job}?keep_loki=true")
    problem = delete(gateway, f"/jobs/{job}/deletion", 409)
    assert problem["type"] == "urn:trainwire:problem:still-deleting"
    JobDeleter(resources, open_s3).run_due()
    line = {"lines": ["a"]}
    refused = gateway.post(f"/jobs/{job}/callback/logs", line, 410)
    assert refused["type"] == "urn:trainwire:problem:job-deleted"
    assert delete(gateway, f"/jobs/{job}/deletion", 204) is None
    gateway.post(f"/jobs/{job}/callback/logs", line, 202)
    drain(resources, job=job)
    assert rows(resources.engine, training_logs, "content") == ["a"]


def test_a_number_is_freed_after_an_outage_of_redis(resources: Resources, job: int) -> None:
    """Without Redis the tombstone stays, so that the repeated request also removes the mark for trainers."""
    with resources.engine.begin() as connection:
        begin_deletion(connection, job, Choice(), by="test")
    JobDeleter(resources, open_s3).run_due()
    known: Any = resources
    with redis.Redis(port=free_port()) as away, pytest.raises(redis.ConnectionError):
        forget(replace(known, redis=away), job, known)
    assert forget(known, job, known).status_code == 204
    assert not resources.redis.exists(acks_key(job))


def test_a_waiting_callback_gets_the_deletion(gateway: GatewayServer, resources: Resources, job: int) -> None:
    """A message that the deletion discarded is not answered as stored."""
    delete(gateway, f"/jobs/{job}?keep_loki=true")
    # The workers have not written to Redis yet that the job is deleted.
    assert gateway.post(f"/jobs/{job}/callback/logs", {"lines": ["a"]}, 202)["status"] == "accepted"
    drain(resources, job=job)
    assert gateway.post(f"/jobs/{job}/callback/logs?wait_s=5", {"lines": ["b"]}, 410)["status"] == 410
