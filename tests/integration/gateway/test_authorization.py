"""Authorization: tokens and roles, cookies, foreign origins and foreign host names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import make_url, text

from tests.factories import one
from tests.gateway_server import FLOWER_URL, GatewayServer, gateway_settings
from tests.processes import wait_until
from trainwire.gateway.auth.token_cache import FRESH_S
from trainwire.gateway.auth.tokens import Role, create_token, hash_of, revoke_token
from trainwire.gateway.settings import load_gateway_settings
from trainwire.schemas.tables import gateway_tokens
from trainwire.stores.settings import WrongSettings
from trainwire.workers.resources import Resources

LINES = {"lines": ["a"]}


def make_token(resources: Resources, role: Role, job_id: int | None = None, **more: Any) -> str:
    """Return a new token."""
    with resources.engine.begin() as connection:
        return create_token(connection, f"a {role}", role, job_id, **more)[1]


def bearer(token: str) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


def test_without_a_token_nothing_is_shown(guarded: GatewayServer) -> None:
    """Requests for jobs are refused, with the scheme to use; health and session need no token."""
    for path in ("/jobs", "/jobs/1/logs", "/jobs/compare?ids=1", "/checkpoints/1-1/url", "/metrics"):
        answer = guarded.request("GET", path)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert guarded.request("POST", "/jobs/1/callback/logs", json=LINES).status_code == 401
    assert guarded.get("/healthz") == {"status": "ok"}
    assert guarded.get("/session") == {"auth": "on", "role": None, "job_id": None, "flower_url": None}


@pytest.mark.parametrize(
    ("role", "may_look", "may_speak"), [("viewer", True, False), ("trainer", False, True), ("admin", True, True)]
)
def test_each_role_may_do_its_part(
    guarded: GatewayServer, resources: Resources, role: Role, may_look: bool, may_speak: bool
) -> None:
    """A viewer reads, a trainer sends callbacks, an admin does both."""
    headers = bearer(make_token(resources, role))
    looked = guarded.request("GET", "/jobs", headers=headers)
    spoken = guarded.request("POST", "/jobs/1/callback/logs", json=LINES, headers=headers)
    assert (looked.status_code, spoken.status_code) == (200 if may_look else 403, 202 if may_speak else 403)
    session = guarded.get("/session", headers=headers)
    assert session["role"] == role
    assert session["flower_url"] == (FLOWER_URL if may_look else None)


def test_a_trainer_may_be_bound_to_a_job(guarded: GatewayServer, resources: Resources) -> None:
    """A token of one job is refused for other jobs, and the error names its job."""
    headers = bearer(make_token(resources, "trainer", 7))
    assert guarded.request("POST", "/jobs/7/callback/logs", json=LINES, headers=headers).status_code == 202
    refusal = guarded.post("/jobs/8/callback/logs", LINES, status=403, headers=headers)
    assert refusal["detail"] == "the token is for job 7 only: use a token for this job"
    assert guarded.get("/session", headers=headers) == {
        "auth": "on",
        "role": "trainer",
        "job_id": 7,
        "flower_url": None,
    }


@pytest.mark.parametrize("token", ["tw_unknown", "x" * 10_000, "\u00fc"])
def test_an_unknown_token_is_none(guarded: GatewayServer, token: str) -> None:
    """Unknown and malformed tokens are refused."""
    headers = {"Authorization": f"Bearer {token}".encode()}
    assert guarded.request("GET", "/jobs", headers=headers).status_code == 401


def test_an_expired_token_is_none(guarded: GatewayServer, resources: Resources) -> None:
    """A token is refused after it expires."""
    token = make_token(resources, "viewer", lasts=timedelta(seconds=-1))
    assert guarded.request("GET", "/jobs", headers=bearer(token)).status_code == 401


def test_a_revoked_token_works_no_longer(guarded: GatewayServer, resources: Resources) -> None:
    """A cached token is refused within seconds of its revocation."""
    token = make_token(resources, "viewer")
    assert guarded.request("GET", "/jobs", headers=bearer(token)).status_code == 200
    with resources.engine.begin() as connection:
        assert revoke_token(connection, 1)
        assert not revoke_token(connection, 99)

    def is_refused() -> bool:
        return guarded.request("GET", "/jobs", headers=bearer(token)).status_code == 401

    wait_until(is_refused, "the end of the token", FRESH_S + 30)


def test_only_a_hash_is_kept(guarded: GatewayServer, resources: Resources) -> None:
    """The table has a hash instead of the token, and the time of its last use."""
    token = make_token(resources, "viewer")
    guarded.get("/jobs", headers=bearer(token))
    row = one(resources.engine, gateway_tokens, id=1)
    assert (bytes(row["hash"]), len(token)) == (hash_of(token), 46)
    assert row["last_used_at"] is not None
    assert token not in str(dict(row))


def test_a_postgres_that_takes_no_writes_lets_people_in(
    database_url: str, redis_url: str, resources: Resources
) -> None:
    """On a standby, or with a full disk, tokens stay valid; only their last use is not stored."""
    headers = bearer(make_token(resources, "admin"))
    settings = gateway_settings(without_writes(database_url, resources), redis_url, gateway_auth="on")
    with GatewayServer(settings) as server:
        assert server.request("GET", "/jobs", headers=headers).status_code == 200
        assert server.request("POST", "/jobs/1/callback/logs", json=LINES, headers=headers).status_code == 202
    assert one(resources.engine, gateway_tokens, id=1)["last_used_at"] is None


def test_sessions_of_a_read_only_postgres_do_not_stay(
    database_url: str, redis_url: str, resources: Resources
) -> None:
    """Once Postgres accepts writes again, the gateway's sessions do too; terminated sessions are replaced."""
    headers = bearer(make_token(resources, "admin"))
    settings = gateway_settings(without_writes(database_url, resources), redis_url, gateway_auth="on")
    with GatewayServer(settings) as server:

        def is_noted() -> bool:
            assert server.request("GET", "/jobs", headers=headers).status_code == 200
            return one(resources.engine, gateway_tokens, id=1)["last_used_at"] is not None

        assert not is_noted()
        with resources.engine.begin() as connection:
            connection.execute(text("ALTER ROLE standby RESET default_transaction_read_only"))
        wait_until(is_noted, "the use of the token")
        for _ in range(5):
            with resources.engine.begin() as connection:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'standby'")
                )
            assert is_noted()


def without_writes(database_url: str, resources: Resources) -> str:
    """Return the database's address for a user whose transactions are read-only."""
    user, password = "standby", "standby"
    with resources.engine.begin() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {user}"))
        connection.execute(text(f"CREATE ROLE {user} LOGIN SUPERUSER PASSWORD '{password}'"))
        connection.execute(text(f"ALTER ROLE {user} SET default_transaction_read_only = on"))
    url = make_url(database_url).set(username=user, password=password)
    return url.render_as_string(hide_password=False)


def test_a_browser_has_the_token_in_a_cookie(guarded: GatewayServer, resources: Resources) -> None:
    """A session begins with a valid token, in an HttpOnly and SameSite cookie, and can be ended."""
    token = make_token(resources, "viewer")
    assert guarded.request("POST", "/session", json={"token": "tw_wrong"}).status_code == 401
    begun = guarded.request("POST", "/session", json={"token": token})
    assert begun.json() == {"auth": "on", "role": "viewer", "job_id": None, "flower_url": FLOWER_URL}
    cookie = begun.headers["Set-Cookie"].lower()
    assert all(word in cookie for word in ("trainwire_session=", "httponly", "samesite=strict"))
    assert "path=" not in cookie  # the browser takes the folder of the address: / here, a proxy's path behind one
    assert "secure" not in cookie
    assert guarded.get("/jobs")["items"] == []
    assert guarded.request("DELETE", "/session").status_code == 204
    assert guarded.request("GET", "/jobs").status_code == 401


def test_over_https_the_cookie_is_for_https_alone(
    guarded: GatewayServer, database_url: str, redis_url: str, resources: Resources
) -> None:
    """The cookie is Secure if a trusted proxy forwards https; the header of other clients is ignored."""
    token, https = make_token(resources, "viewer"), {"X-Forwarded-Proto": "https"}
    answer = guarded.request("POST", "/session", json={"token": token}, headers=https)
    assert "secure" not in answer.headers["Set-Cookie"].lower()
    settings = gateway_settings(database_url, redis_url, gateway_auth="on", gateway_trusted_proxies="127.0.0.1")
    with GatewayServer(settings) as trusting:
        answer = trusting.request("POST", "/session", json={"token": token}, headers=https)
        assert "secure" in answer.headers["Set-Cookie"].lower()


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 202),
        ("{url}", 202),
        ("http://evil.example", 403),
        ("null", 403),
        ("{url}.evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("http://[", 403),
    ],
)
def test_foreign_pages_are_refused(gateway: GatewayServer, origin: str | None, status: int) -> None:
    """Changes are accepted from the gateway's own page, and from programs, which send no Origin."""
    headers = {} if origin is None else {"Origin": origin.format(url=gateway.url)}
    assert gateway.request("POST", "/jobs/1/callback/logs", json=LINES, headers=headers).status_code == status
    assert gateway.request("GET", "/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:80", 200), ("[::1]:8800", 200), ("evil.example", 403), ("127.0.0.1.x", 403)]
)
def test_without_tokens_only_this_machines_names_are_answered(
    gateway: GatewayServer, host: str, status: int
) -> None:
    """Requests with a foreign host name (DNS rebinding) are refused."""
    assert gateway.request("GET", "/jobs", headers={"Host": host}).status_code == status


def test_with_tokens_any_name_is_answered(guarded: GatewayServer, resources: Resources) -> None:
    """With tokens every host name is accepted, as a proxy may use any."""
    headers = {"Host": "train.example.com", **bearer(make_token(resources, "viewer"))}
    assert guarded.request("GET", "/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "auth", "is_on"),
    [
        ("127.0.0.1", "auto", False),
        ("::1", "auto", False),
        ("localhost", "auto", False),
        ("127.0.0.1", "on", True),
        ("0.0.0.0", "auto", True),
        ("::", "auto", True),
        ("192.168.1.5", "auto", True),
        ("train.example.com", "auto", True),
    ],
)
def test_tokens_are_asked_for_unless_only_this_machine_can_reach_it(host: str, auth: Any, is_on: bool) -> None:
    """Tokens are required on any address that other machines can reach, and cannot be switched off."""
    urls = {"database_url": "postgresql://h/db", "redis_url": "redis://h"}
    assert load_gateway_settings(**urls, gateway_host=host, gateway_auth=auth).is_auth_on is is_on
    with pytest.raises(WrongSettings, match=r"GATEWAY_AUTH Input should be 'auto' or 'on' \(it is 'off'\)"):
        load_gateway_settings(**urls, gateway_auth="off")


def test_a_gateway_without_postgres_refuses_all_tokens(guarded: GatewayServer, resources: Resources) -> None:
    """If tokens cannot be looked up, the answer is 503."""
    with resources.engine.begin() as connection:
        connection.execute(text("ALTER TABLE gateway_tokens RENAME TO gone"))
    try:
        assert guarded.request("GET", "/jobs", headers=bearer("tw_any")).status_code == 503
    finally:
        with resources.engine.begin() as connection:
            connection.execute(text("ALTER TABLE gone RENAME TO gateway_tokens"))
