"""Alerts reach their destinations exactly as often as promised: outages, hanging servers, killed workers."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.factories import Sender, completion, drain
from tests.integration.workers.alert_fixtures import SECRET, Alerts, now_ns
from tests.processes import wait_until
from tests.webhook_receiver import Received, receiving
from trainwire.schemas.backoff import Backoff
from trainwire.stores.postgres.alerts import destination_health, resend_alert
from trainwire.workers.alerts import senders
from trainwire.workers.resources import Resources

WORKER: Final = """
import sys
from pathlib import Path
from trainwire.stores.postgres.connections import open_engine
from trainwire.workers.alerts.delivery import AlertDelivery
from trainwire.workers.alerts.rules_file import load_rules
from trainwire.workers.settings import load_settings
engine = open_engine(load_settings(database_url=sys.argv[1], redis_url="redis://127.0.0.1:1"), name="killed")
rules = load_rules(Path(sys.argv[2]))
sys.stdin.readline()
AlertDelivery(engine, rules, slice_s=60).run()
"""


@pytest.fixture
def alerts(resources: Resources, tmp_path: Path) -> Iterator[Alerts]:
    """Alert rules with a local webhook."""
    with receiving() as receiver:
        yield Alerts(resources, receiver, tmp_path / "alerts.toml")


def _fail(alerts: Alerts, sender: Sender, *jobs: int) -> None:
    """Let jobs fail, and apply the rules."""
    for job in jobs:
        sender.send(completion("failed", ts=now_ns(), error_message=f"error of {job}"), job=job)
        drain(alerts.resources, "completions", job)
    alerts.apply()


def _titles(received: list[Received]) -> list[str]:
    return [each.document["data"]["title"] for each in received]


def test_a_webhook_is_signed(alerts: Alerts, sender: Sender) -> None:
    """The signature is that of Standard Webhooks over id, time and body; any change of the body breaks it."""
    alerts.begin('on = "failed"')
    _fail(alerts, sender, 1)
    alerts.send()
    (request,) = alerts.receiver.requests
    signed = f"{request.headers['webhook-id']}.{request.headers['webhook-timestamp']}.".encode() + request.body
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert request.headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    data = request.document["data"]
    assert (data["title"], data["text"], data["level"]) == ("Job 1 failed", "error of 1", "error")
    assert (data["rule"], data["job"], data["attempt"]) == ("rule 1", {"id": 1, "name": None}, 1)
    assert alerts.column("state") == ["sent"]
    alerts.send()
    assert len(alerts.receiver.requests) == 1


def test_an_outage_is_outlasted(alerts: Alerts, sender: Sender) -> None:
    """Alerts wait in order while the webhook is away or refuses, under the same id; then each arrives once."""
    alerts.begin('on = "failed"')
    alerts.receiver.stop()
    _fail(alerts, sender, 1, 5)
    alerts.send()
    assert alerts.column("state") == ["waiting", "waiting"]
    assert alerts.log[0].last_error == "the webhook refused the connection, or its host is unknown"
    alerts.receiver.start()
    alerts.receiver.status = 503
    alerts.send()
    alerts.send()
    refused = len(alerts.receiver.requests)
    assert refused == 2
    assert "the webhook answered 503" in alerts.column("last_error")
    alerts.receiver.status = 200
    alerts.send()
    assert alerts.column("state") == ["sent", "sent"]
    accepted = alerts.receiver.requests[refused:]
    assert sorted(_titles(accepted)) == ["Job 1 failed", "Job 5 failed"]
    tried = {request.headers["webhook-id"] for request in alerts.receiver.requests}
    assert tried == {request.headers["webhook-id"] for request in accepted}


def test_a_destination_that_fails_rests(alerts: Alerts, sender: Sender) -> None:
    """After a failure nothing is sent to the destination until its backoff, or its Retry-After, has elapsed."""
    alerts.begin('on = "failed"')
    alerts.receiver.status, alerts.receiver.headers = 429, {"Retry-After": "60"}
    _fail(alerts, sender, 1)
    for _ in range(3):
        alerts.send()
    assert len(alerts.receiver.requests) == 1
    with alerts.resources.engine.connect() as connection:
        health = destination_health(connection, "ops")
    assert (health.waiting, health.last_error) == (1, "the webhook answered 429")
    alerts.receiver.status = 204
    alerts.execute("UPDATE sink_states SET next_probe_at = now()")
    alerts.send(Backoff())
    with alerts.resources.engine.connect() as connection:
        assert destination_health(connection, "ops").down_since is None


def test_a_hanging_webhook_delays_no_other(
    alerts: Alerts, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook that accepts the request and does not answer is retried; other destinations get theirs."""
    monkeypatch.setattr(senders, "ANSWER_TIMEOUT_S", 3.0)
    with receiving() as other:
        alerts.begin(
            'on = "failed"\nto = ["ops", "second"]',
            more=f'[destinations.second]\nwebhook = "{other.url}"\nsecret = "{SECRET}"',
        )
        alerts.receiver.hangs = True
        _fail(alerts, sender, 1)
        alerts.send()
        assert len(other.requests) == 1
    assert {alert.destination: alert.state for alert in alerts.log} == {"ops": "waiting", "second": "sent"}
    assert "the webhook did not answer within 3 s" in alerts.column("last_error")


def test_an_alert_that_is_refused_delays_no_other(alerts: Alerts, sender: Sender) -> None:
    """One that failed comes after those that were not tried yet."""
    alerts.begin('on = "failed"')
    _fail(alerts, sender, 1)
    alerts.receiver.status = 400
    alerts.send()
    _fail(alerts, sender, 5)
    alerts.receiver.status = 204
    alerts.send()
    assert _titles(alerts.receiver.requests) == ["Job 1 failed", "Job 5 failed", "Job 1 failed"]


@pytest.mark.parametrize(("destination", "state"), [("ops", "sent"), ("team", "uncertain")])
def test_a_kill_between_send_and_record(
    alerts: Alerts, sender: Sender, database_url: str, destination: str, state: str
) -> None:
    """A webhook gets the alert again under the same id; another service does not, and the log has the reason."""
    if destination == "team":
        pytest.importorskip("apprise")
    alerts.begin(f'on = "failed"\nto = "{destination}"')
    _fail(alerts, sender, 1)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, database_url, str(alerts.path)], stdin=subprocess.PIPE, text=True
    )
    with worker:
        alerts.receiver.kills = worker.pid
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.close()
        assert worker.wait(60) == -9
    assert alerts.column("state") == ["sending"]

    def is_resolved() -> bool:
        alerts.send()
        return alerts.column("state") != ["sending"]

    wait_until(is_resolved, "the lease of the killed worker ends")
    assert alerts.column("state") == [state]
    if destination == "ops":
        first, second = alerts.receiver.requests
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
    else:
        assert len(alerts.receiver.requests) == 1
        assert alerts.log[0].last_error == "its worker ended while it was sent: it may have arrived"
        with alerts.resources.engine.begin() as connection:
            assert resend_alert(connection, alerts.log[0].id)
        alerts.send()
        assert len(alerts.receiver.requests) == 2


def test_other_services_are_reached_by_apprise(alerts: Alerts, sender: Sender) -> None:
    """Title, text and level reach a service of Apprise; its refusal is logged without the address."""
    pytest.importorskip("apprise")
    alerts.begin('on = "failed"\nto = "team"')
    _fail(alerts, sender, 1)
    alerts.receiver.status = 500
    alerts.send()
    (waiting,) = alerts.log
    assert waiting.state == "waiting"
    assert "500" in str(waiting.last_error)
    assert "very-secret" not in str(waiting.last_error)
    alerts.receiver.status = 200
    alerts.send()
    document = alerts.receiver.requests[-1].document
    assert (document["title"], document["type"]) == ("Job 1 failed", "failure")
    assert "error of 1" in document["message"]
    assert alerts.column("state") == ["sent"]


def test_what_waits_for_too_long_is_given_up(alerts: Alerts, sender: Sender) -> None:
    """After max_age_h an alert is logged as failed with the last reason; also one whose destination is gone."""
    alerts.begin('on = "failed"\nto = ["ops", "team"]')
    alerts.receiver.status = 503
    _fail(alerts, sender, 1)
    alerts.execute("DELETE FROM alerts WHERE destination = 'team'")
    alerts.send()
    alerts.execute("UPDATE alerts SET created_at = now() - interval '25 hours'")
    alerts.send()
    (alert,) = alerts.log
    assert (alert.state, alert.last_error) == ("failed", "the webhook answered 503")
    assert alert.ended_at is not None


def test_an_alert_of_a_removed_destination_has_the_reason(alerts: Alerts, sender: Sender) -> None:
    """It waits with the remedy in its reason, and is sent once the rules have the destination again."""
    alerts.begin('on = "failed"')
    _fail(alerts, sender, 1)
    alerts.execute("UPDATE alerts SET destination = 'gone'")
    alerts.send()
    (alert,) = alerts.log
    assert (alert.state, alert.destination) == ("waiting", "gone")
    assert (alert.last_error or "").startswith(
        "the rules have no destination gone: add it again, or the alert fails"
    )
    alerts.execute("UPDATE alerts SET destination = 'ops'")
    alerts.send()
    (alert,) = alerts.log
    assert (alert.state, alert.last_error) == ("sent", None)


def test_an_alert_is_sent_by_one_worker(alerts: Alerts, sender: Sender) -> None:
    """While a worker sends to a destination, others leave it alone."""
    alerts.begin('on = "failed"')
    alerts.receiver.hangs = True
    _fail(alerts, sender, 1)
    with alerts.resources.engine.begin() as lease:
        lease.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('alerts:ops', 0))")
        alerts.send()
    assert alerts.receiver.requests == []
