"""`trainwire alerts`, `trainwire alert` and the findings of doctor about alerts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, insert, text

from tests.integration.cli.conftest import Doctor, Trainwire
from tests.webhook_receiver import Receiver, receiving
from trainwire.schemas.tables import alerts

SECRET = "0123456789abcdef"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook."""
    with receiving() as found:
        yield found


@pytest.fixture
def rules(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of rules with two destinations, of which one has no server."""
    path = tmp_path / "alerts.toml"
    path.write_text(
        f'[destinations.ops]\nwebhook = "{receiver.url}"\nsecret = "{SECRET}"\n'
        f'[destinations.dead]\nwebhook = "http://127.0.0.1:9/very-secret"\nsecret = "{SECRET}"\n'
        '[[rules]]\nname = "failed"\non = "failed"\nto = "ops"\n'
    )
    monkeypatch.setenv("ALERT_RULES", str(path))
    return path


def _insert(engine: Engine, state: str, title: str, error: str | None = None) -> None:
    values = {
        "rule": "failed",
        "destination": "ops",
        "occurrence": title,
        "state": state,
        "level": "error",
        "job_id": 42,
        "attempt": 1,
        "title": title,
        "content": "",
        "last_error": error,
    }
    with engine.begin() as connection:
        connection.execute(insert(alerts).values(occurred_at=func.now(), **values))


def test_the_log_of_alerts(connected: Trainwire, engine: Engine) -> None:
    """The newest come first, with state and reason; they are filtered by state, and sent again by number."""
    assert connected("alerts").out == "no alerts\n"
    _insert(engine, "sent", "Job 42 failed")
    _insert(engine, "uncertain", "Job 43 failed", "it may have arrived")
    shown = connected("alerts").out
    assert shown.index("Job 43 failed") < shown.index("Job 42 failed")
    assert "it may have arrived" in shown
    found = json.loads(connected("alerts", "--state", "uncertain", "--json").out)
    assert [entry["title"] for entry in found] == ["Job 43 failed"]
    assert connected("alerts", "--state", "odd").err.startswith("trainwire: no such state 'odd': choose waiting")
    assert connected("alert", "resend", str(found[0]["id"])).out == f"alert {found[0]['id']} is sent again\n"
    assert [entry["state"] for entry in json.loads(connected("alerts", "--json").out)] == ["waiting", "sent"]
    assert connected("alert", "resend", "99").code == 1


@pytest.mark.usefixtures("rules", "engine")
def test_destinations_are_tested(connected: Trainwire, receiver: Receiver) -> None:
    """A test message is sent to each destination; failures are named without the address, with exit code 1."""
    tested = connected("alert", "test")
    assert tested.code == 1
    assert tested.out.splitlines() == [
        "ops: sent",
        "dead: not sent: the webhook refused the connection, or its host is unknown",
    ]
    assert receiver.requests[0].document["data"]["title"] == "Test of trainwire's alerts"
    assert connected("alert", "test", "ops").code == 0
    assert "no such destination 'no': there are ops, dead" in connected("alert", "test", "no").err


@pytest.mark.usefixtures("engine")
def test_a_test_without_rules(connected: Trainwire) -> None:
    """Without ALERT_RULES the error names the setting."""
    assert "ALERT_RULES is not set: name the file of the rules" in connected("alert", "test").err


def test_doctor_examines_rules_and_destinations(doctor: Doctor, engine: Engine, rules: Path) -> None:
    """Doctor reports a destination that fails, alerts that were given up, and a file that is wrong."""
    found = doctor.look()
    assert found["alerts.rules"]["level"] == "ok"
    assert found["alerts.destination-ops"]["level"] == "ok"
    assert found["processes.queue-alerts"]["level"] == "error"
    _insert(engine, "uncertain", "Job 42 failed")
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sink_states (sink, attempts, down_since, last_error) "
                "VALUES ('alerts:dead', 3, now(), 'the webhook answered 500')"
            )
        )
    found = doctor.look()
    assert found["alerts.destination-ops"]["level"] == "warning"
    assert found["alerts.destination-dead"]["level"] == "error"
    assert "the webhook answered 500" in found["alerts.destination-dead"]["says"]
    rules.write_text(rules.read_text().replace('on = "failed"', 'on = "faild"'))
    assert "line 9: rule 'failed': on: Invalid enum value 'faild'" in doctor.look()["alerts.rules"]["says"]
    rules.write_text(rules.read_text().replace(SECRET, "${NO_SUCH_VARIABLE}"))
    assert doctor.look()["alerts.rules"]["level"] == "warning"
