"""Deletions in the feed: announced by an event or found without one, and named when clients reconnect."""

from __future__ import annotations

import pytest
from websockets.exceptions import ConnectionClosed

from tests.factories import logs
from tests.integration.gateway.feed_clients import GatewayProcess, Trainer, WebSocketClient
from trainwire.stores.postgres.deletion import Choice, begin_deletion, publish_deletion
from trainwire.workers.resources import Resources


def delete(resources: Resources, job_id: int, *, announced: bool) -> None:
    """Delete a job as the gateway does, its event lost or not."""
    with resources.engine.begin() as connection:
        deletion = begin_deletion(connection, job_id, Choice(), by="a test", force=True)
    if announced:
        publish_deletion(resources.redis, deletion)


@pytest.mark.parametrize("announced", [True, False])
def test_the_list_loses_the_job(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources, announced: bool
) -> None:
    """A deleted job is removed from the list by its event, or by the next comparison."""
    trainer.send(logs("one"))
    with WebSocketClient(feed_gateway, "/jobs/ws") as client:
        listed = [job["id"] for job in client.take()["jobs"]]
        assert trainer.job_id in listed or client.until_type("job")["job"]["id"] == trainer.job_id
        delete(resources, trainer.job_id, announced=announced)
        assert client.until_type("training_deleted")["job_id"] == trainer.job_id
    with WebSocketClient(feed_gateway, "/jobs/ws") as client:
        # A snapshot may be half a second old; the events since then follow it.
        assert client.take()["jobs"] == [] or client.until_type("training_deleted")["job_id"] == trainer.job_id


@pytest.mark.parametrize("announced", [True, False])
def test_followers_of_a_deleted_job_are_closed(
    feed_gateway: GatewayProcess, trainer: Trainer, resources: Resources, announced: bool
) -> None:
    """The connection is closed, and reconnecting clients get 4410."""
    trainer.send(logs("one"))
    path = f"/jobs/{trainer.job_id}/ws"
    with WebSocketClient(feed_gateway, path) as client:
        client.take()
        delete(resources, trainer.job_id, announced=announced)
        with pytest.raises(ConnectionClosed):
            client.until("logs", 2)
        client.connect()
        with pytest.raises(ConnectionClosed) as closed:
            client.take()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4410, f"job {trainer.job_id} was deleted")
