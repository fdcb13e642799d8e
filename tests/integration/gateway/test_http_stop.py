"""`POST /jobs/{id}/stop`: who may ask, under which name, and the answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import Sender, completion, drain
from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.wire.messages import Metrics
from trainwire.workers.resources import Resources


@pytest.fixture
def _running(sender: Sender, resources: Resources) -> None:
    """Job 7, which runs."""
    sender.send(Metrics(name="digits"), job=7)
    drain(resources, "metrics", job=7)


@pytest.mark.usefixtures("_running")
def test_a_job_is_asked_once(gateway: GatewayServer) -> None:
    """The answer is the request; a second one, with or without a body, is answered with the first."""
    first = gateway.post("/jobs/7/stop", {"reason": " loss is NaN ", "by": "anna"})
    assert (first["attempt"], first["requested_by"], first["reason"]) == (1, "anna", "loss is NaN")
    assert gateway.post("/jobs/7/stop", {"by": "bert"}) == first
    assert gateway.request("POST", "/jobs/7/stop").json() == first
    assert gateway.get("/jobs/7")["stop"] == {
        name: first[name] for name in ("requested_at", "requested_by", "reason")
    }
    assert gateway.get("/jobs")["items"][0]["stop"]["requested_by"] == "anna"


@pytest.mark.usefixtures("_running")
def test_the_name_of_the_token_is_the_author(guarded: GatewayServer, resources: Resources) -> None:
    """Only admins may ask, and they cannot take another name."""
    with resources.engine.begin() as connection:
        tokens = {role: create_token(connection, f"{role}s", role)[1] for role in ("viewer", "trainer", "admin")}

    def answer(role: str) -> Any:
        headers = {"Authorization": f"Bearer {tokens[role]}"}
        return guarded.request("POST", "/jobs/7/stop", json={"by": "someone"}, headers=headers)

    assert [answer(role).status_code for role in ("viewer", "trainer", "admin")] == [403, 403, 202]
    assert answer("admin").json()["requested_by"] == "admins"


@pytest.mark.usefixtures("_running")
def test_refusals_are_problems(gateway: GatewayServer, sender: Sender, resources: Resources) -> None:
    """An unknown job is 404, one that has ended 409, a wrong text or field 422."""
    assert gateway.post("/jobs/99/stop", {}, 404)["type"] == "urn:trainwire:problem:unknown-job"
    wrong = gateway.post("/jobs/7/stop", {"reason": "x" * 1001}, 422)
    assert wrong["errors"][0]["field"] == "reason"
    gateway.post("/jobs/7/stop", {"reason": "a\0"}, 422)
    gateway.post("/jobs/7/stop", {"why": "?"}, 422)
    sender.send(completion(), job=7)
    drain(resources, "completions", job=7)
    ended = gateway.post("/jobs/7/stop", {}, 409)
    assert (ended["type"], "has ended (completed)" in ended["detail"]) == ("urn:trainwire:problem:job-ended", True)
