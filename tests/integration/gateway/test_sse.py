"""The live feed as server-sent events, and the list of all jobs."""

from __future__ import annotations

import urllib3

from tests.factories import completion, logs, metrics
from tests.integration.gateway.feed_clients import EventSource, GatewayProcess, Trainer, WebSocketClient
from trainwire.workers.resources import Resources


def test_events_follow_a_snapshot(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """The events are the same as over WebSocket, and the id of each is the position after it."""
    trainer.send(logs("one"))
    with EventSource(feed_gateway, f"/jobs/{trainer.job_id}/events") as client:
        assert client.response.headers["Content-Type"].startswith("text/event-stream")
        assert client.take()["type"] == "snapshot"
        trainer.send(logs("two"))
        trainer.send(completion())
        client.until_type("training_complete")
        assert (client.texts, client.position) == (["one", "two"], "2-0-0")


def test_a_browser_comes_back_with_its_last_event(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """Events after Last-Event-ID are sent before new ones."""
    trainer.send(logs("one", "two", "three"))
    path = f"/jobs/{trainer.job_id}/events?after=0-0-0"
    with EventSource(feed_gateway, path, last_event_id="1-0-0") as client:
        assert client.take()["type"] == "resumed"
        client.until("logs", 3)
        trainer.send(logs("four"))
        client.until("logs", 4)
        assert client.texts == ["two", "three", "four"]


def test_a_wrong_request_is_a_problem_document(feed_gateway: GatewayProcess, trainer: Trainer) -> None:
    """An unknown job is answered 404, an invalid position 422, each with its value."""
    trainer.send(logs("one"))
    unknown = urllib3.request("GET", f"{feed_gateway.url}/jobs/31337/events", retries=False)
    assert (unknown.status, "31337" in unknown.json()["detail"]) == (404, True)
    for after in ("x", "900-0-0"):
        wrong = urllib3.request(
            "GET", f"{feed_gateway.url}/jobs/{trainer.job_id}/events", fields={"after": after}, retries=False
        )
        assert (wrong.status, after in wrong.json()["detail"]) == (422, True)


def test_the_list_gets_events_of_all_jobs(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources
) -> None:
    """A new job is sent with its list document, then its events without rows."""
    trainer.send(logs("begin"))
    other = Trainer(resources, trainer.job_id + 500_000)
    with EventSource(feed_gateway, "/jobs/events") as client:
        listed = {job["id"] for job in client.take()["jobs"]}  # read at most a second ago, shared by all clients
        while trainer.job_id not in listed:
            listed.add(client.until_type("job")["job"]["id"])
        other.send(metrics(epoch=1, loss=0.5))
        other.send(completion(exit_code=0))
        while client.until_type("job")["job"]["id"] != other.job_id:
            pass
        end = client.until_type("training_complete")
        assert (end["job_id"], client.position) == (other.job_id, None)


def test_the_list_finds_jobs_without_an_event(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources
) -> None:
    """A job that is new or changed without an event is sent with its list document."""
    trainer.send(metrics(loss=1.0))
    other = Trainer(resources, trainer.job_id + 500_000)
    with WebSocketClient(feed_gateway, "/jobs/ws") as client:
        assert client.take()["type"] == "snapshot"
        trainer.send(completion("failed", exit_code=1), announced=False)
        other.send(logs("begin"), announced=False)
        found: dict[int, str] = {}
        wanted = {trainer.job_id: "failed", other.job_id: "running"}
        while not wanted.items() <= found.items():  # events of the previous test's jobs may still arrive
            job = client.until_type("job")["job"]
            found[job["id"]] = job["status"]
