"""`trainwire token`: create, list, revoke."""

from __future__ import annotations

import json

import pytest

from tests.gateway_server import GatewayServer
from tests.integration.cli.conftest import Trainwire
from trainwire.gateway.auth.tokens import find_token
from trainwire.workers.resources import Resources


def test_a_token_is_made_listed_and_revoked(connected: Trainwire, resources: Resources) -> None:
    """The token is printed once and is accepted until it is revoked; the list does not contain it."""
    token = connected("token", "create", "--name", "gpu <1>", "--role", "trainer", "--job", "42").out.strip()
    with resources.engine.begin() as connection:
        known = find_token(connection, token)
    assert known is not None
    assert (known.role, known.job_id) == ("trainer", 42)
    listed = connected("token", "list")
    assert "gpu <1>" in listed.out
    assert token not in listed.out
    (row,) = json.loads(connected("token", "list", "--json").out)
    assert (row["id"], row["name"], row["revoked_at"]) == (1, "gpu <1>", None)
    assert connected("token", "revoke", "1").out == "token 1 is revoked\n"
    assert "revoked" in connected("token", "list").out
    with resources.engine.begin() as connection:
        assert find_token(connection, token) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--name", "a", "--role", "root"], "no such role 'root': choose viewer, trainer, admin"),
        (["create", "--name", "a", "--job", "1"], "--job is for the role trainer"),
        (["create", "--role", "trainer", "--job", "1"], "--name is missing"),
        (["create", "--trainer"], "--name is missing"),
        (["create", "--trainer", "--role", "admin", "--name", "a"], "--trainer and --role admin contradict"),
        (["create", "--trainer", "--name", "*"], "--name '*' is not a name of runs"),
        (["create", "--trainer", "--name", "a*b*"], "--name 'a*b*' is not a name of runs"),
        (["create", "--name", "a", "--days", "1", "--expires", "1d"], "both given"),
        (["revoke", "7"], "no token 7: see `trainwire token list`"),
    ],
)
def test_wrong_words_are_named(connected: Trainwire, arguments: list[str], said: str) -> None:
    """Wrong arguments are one error with the value."""
    done = connected("token", *arguments)
    assert done.code == 1
    assert said in done.err


@pytest.mark.parametrize(
    ("arguments", "name", "bound", "lasts_s"),
    [
        (["--trainer", "--name", "digits*", "--expires", "30d"], "digits*", (None, "digits*"), 30 * 86_400),
        (["--trainer", "--name", "digits", "--job", "7", "--expires", "12h"], "digits", (7, "digits"), 43_200),
        (["--trainer", "--job", "7"], "job 7", (7, None), None),
        (["--role", "trainer", "--name", "gpu*", "--days", "1"], "gpu*", (None, None), 86_400),
    ],
)
def test_a_token_for_trainers(
    connected: Trainwire,
    resources: Resources,
    *,
    arguments: list[str],
    name: str,
    bound: tuple[int | None, str | None],
    lasts_s: float | None,
) -> None:
    """With --trainer the name is that of the runs; the token is bound to it and to the job, and expires."""
    token = connected("token", "create", *arguments).out.strip()
    with resources.engine.begin() as connection:
        known = find_token(connection, token)
    assert known is not None
    assert (known.role, known.job_id, known.job_names) == ("trainer", *bound)
    assert known.expires_in_s == (None if lasts_s is None else pytest.approx(lasts_s, abs=60))
    (row,) = json.loads(connected("token", "list", "--json").out)
    assert (row["name"], row["job_names"]) == (name, bound[1])


@pytest.mark.parametrize("text", ["30", "0d", "-1d", "1y", "40000d", "d", "", "1.5h", "\u0663d"])
def test_a_time_that_is_none(connected: Trainwire, text: str) -> None:
    """A wrong --expires is an error with the value and the form."""
    done = connected("token", "create", "--name", "a", "--expires", text)
    assert done.code == 2
    assert "write 12h, 30d or 8w" in " ".join(done.err.split())


def test_an_open_gateway_is_warned_of(
    connected: Trainwire, alone: pytest.MonkeyPatch, gateway: GatewayServer, guarded: GatewayServer
) -> None:
    """A token protects nothing while the gateway answers requests without one; the warning names the remedy."""
    alone.setenv("TRAINWIRE_URL", gateway.url)
    assert "GATEWAY_AUTH=on" in connected("token", "create", "--name", "anna").err
    for url in (guarded.url, "http://127.0.0.1:1"):
        alone.setenv("TRAINWIRE_URL", url)
        assert connected("token", "create", "--name", "anna").err == ""
