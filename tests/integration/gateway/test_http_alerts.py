"""The log of alerts over HTTP."""

from __future__ import annotations

from sqlalchemy import Engine, func, insert

from tests.gateway_server import GatewayServer
from trainwire.gateway.auth.tokens import create_token
from trainwire.schemas.tables import alerts


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


def test_a_trainer_does_not_read_alerts(guarded: GatewayServer, engine: Engine) -> None:
    """The log needs the role viewer."""
    with engine.begin() as connection:
        _, token = create_token(connection, "trainer", "trainer", job_id=1)
    assert guarded.get("/alerts", 401)
    assert guarded.get("/alerts", 403, headers={"Authorization": f"Bearer {token}"})
