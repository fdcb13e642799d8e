"""`trainwire token`: create, list, revoke."""

from __future__ import annotations

import json

import pytest

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
        (["revoke", "7"], "no token 7: see `trainwire token list`"),
    ],
)
def test_wrong_words_are_named(connected: Trainwire, arguments: list[str], said: str) -> None:
    """Wrong arguments are one error with the value."""
    done = connected("token", *arguments)
    assert done.code == 1
    assert said in done.err
