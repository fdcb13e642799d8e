"""Errors about addresses never repeat a password, wherever it was written."""

from __future__ import annotations

import pytest

from trainwire.schemas.gateway_urls import gateway_url_problem
from trainwire.schemas.streams.redis_urls import redis_url_problem

SECRET = "hunter2-4711"


@pytest.mark.parametrize(
    "rest",
    [f"user:{SECRET}", f"user:{SECRET}@host:70000", f"user:{SECRET}\u2100@host", f":{SECRET}", f"host:{SECRET}/0"],
)
def test_a_password_is_not_repeated(rest: str) -> None:
    """A forgotten host, a wrong port and a character that no address may have are named without the password."""
    for problem in (redis_url_problem(f"redis://{rest}"), gateway_url_problem(f"https://{rest}")):
        assert problem is not None
        assert SECRET not in problem


def test_a_short_port_is_repeated() -> None:
    """A port that is too large, or a word such as `http`, is named."""
    assert redis_url_problem("redis://host:70000/0") == (
        "has the port '70000', which is not a number from 1 to 65535: write redis://host:6379/0"
    )
