"""The log of alerts over HTTP."""

from __future__ import annotations

from sqlalchemy import Engine, func, insert

from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import alerts, sink_states


def test_alerts_are_listed_page_by_page(gateway: GatewayServer, engine: Engine) -> None:
    """The newest come first; `next` leads to older ones, job and state select; no address is in them."""
    with engine.begin() as connection:
        for number, state in enumerate(("sent", "failed", "sent", "waiting"), 1):
            values = {
                "rule": "failed",
                "destination": "ops",
                "occurrence": str(number),
                "state": state,
                "level": "error",
                "job_id": number % 2,
                "attempt": 1,
                "title": f"alert {number}",
                "content": "",
            }
            connection.execute(insert(alerts).values(occurred_at=func.now(), **values))
    first = gateway.get("/alerts?limit=3")
    assert [item["title"] for item in first["items"]] == ["alert 4", "alert 3", "alert 2"]
    rest = gateway.get(f"/alerts?limit=3&before={first['next']}")
    assert ([item["title"] for item in rest["items"]], rest["next"]) == (["alert 1"], None)
    of_job = gateway.get("/alerts?job=1&state=sent")
    assert [item["title"] for item in of_job["items"]] == ["alert 3", "alert 1"]
    assert gateway.get("/alerts?state=odd", 422)


def test_outages_of_destinations_are_listed(gateway: GatewayServer, engine: Engine) -> None:
    """A destination that accepts nothing has its error, the next attempt and the number of alerts that wait."""
    error = {"attempts": 3, "down_since": func.now(), "next_probe_at": func.now(), "last_error": "503"}
    with engine.begin() as connection:
        for sink in ("alerts:ops", "loki"):
            connection.execute(insert(sink_states).values(sink=sink, **error))
        connection.execute(insert(sink_states).values(sink="alerts:team"))
    (outage,) = gateway.get("/alerts")["outages"]
    assert (outage["destination"], outage["waiting"], outage["attempts"], outage["last_error"]) == (
        "ops",
        0,
        3,
        "503",
    )
    assert outage["down_since"] == outage["next_attempt_at"]


def test_a_trainer_does_not_read_alerts(guarded: GatewayServer, engine: Engine) -> None:
    """The log needs the role viewer."""
    with engine.begin() as connection:
        _, token = create_token(connection, "trainer", "trainer", job_id=1)
    assert guarded.get("/alerts", 401)
    assert guarded.get("/alerts", 403, headers={"Authorization": f"Bearer {token}"})
