"""DATABASE_URL with one server, and with several as libpq has them."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import create_engine

from trainwire.stores.settings import (
    StoreSettings,
    WrongSettings,
    parse_postgres_url,
    read_settings,
    shown_servers,
)

SEVERAL = [
    ("u:p@h1:5432,h2:5433/db?target_session_attrs=read-write", "h1,h2", "5432,5433", "h1:5432, h2:5433"),
    ("u:p@h1,h2/db", "h1,h2", "5432,5432", "h1:5432, h2:5432"),
    ("u:p@[::1]:1,[fe80::2]:2/db", "::1,fe80::2", "1,2", "::1:1, fe80::2:2"),
    ("u:p@h1:5432,h2:5433,h3/db?sslmode=disable", "h1,h2,h3", "5432,5433,5432", "h1:5432, h2:5433, h3:5432"),
]


@pytest.mark.parametrize(("text", "hosts", "ports", "shown"), SEVERAL)
def test_several_servers_reach_the_driver(text: str, hosts: str, ports: str, shown: str) -> None:
    """Hosts, ports, user, password, database and options reach libpq; only the hosts are shown."""
    url = parse_postgres_url(f"postgresql://{text}")
    _, options = create_engine(url).dialect.create_connect_args(url)
    assert (options["host"], options["port"]) == (hosts, ports)
    assert (options["user"], options["password"], options["dbname"]) == ("u", "p", "db")
    if "target_session_attrs" in text:
        assert options["target_session_attrs"] == "read-write"
    assert shown_servers(url) == shown


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_one_server_is_as_before(scheme: str) -> None:
    """An address with one host works with and without a port."""
    url = parse_postgres_url(f"{scheme}://u:p%2C%40@h1:5433/db")
    assert (url.drivername, url.host, url.port, url.password) == ("postgresql+psycopg", "h1", 5433, "p,@")
    assert shown_servers(url) == "h1:5433"
    assert shown_servers(parse_postgres_url(f"{scheme}:///db?host=/run/postgresql")) == "/run/postgresql"


def test_a_password_with_a_comma_is_no_second_host() -> None:
    """A comma before the @ is part of the password, of one server and of several."""
    assert parse_postgres_url("postgresql://u:a,b@h1/db").password == "a,b"
    assert parse_postgres_url("postgresql://u:a,b@h1,h2/db").password == "a,b"


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ("h1:5432,[::1", "is not a URL like postgresql://user:password@host:5432/database"),
        ("h1:5432,h2:x", "has the port 'x', which is not a number from 1 to 65535: write postgresql://"),
        ("h1:1:2,h2", "has the port '1:2'"),
        ("h1:x", "has the port 'x'"),
        ("h1:65536", "has the port '65536'"),
        ("[::1]:0", "has the port '0'"),
    ],
)
def test_a_wrong_host_is_named_without_the_password(hosts: str, problem: str) -> None:
    """The error names the variable, the wrong part and the allowed form."""
    with pytest.raises(WrongSettings, match=re.escape(f"DATABASE_URL {problem}")) as failed:
        read_settings(StoreSettings, database_url=f"postgresql://u:hush@{hosts}/db", redis_url="redis://h")
    assert "hush" not in str(failed.value)


def test_settings_with_several_servers_hide_the_password() -> None:
    """The password is neither in the settings' text nor in that of the URL."""
    found = read_settings(StoreSettings, database_url="postgresql://u:hush@h1,h2/db", redis_url="redis://h")
    assert "hush" not in f"{found!r} {found.sqlalchemy_url()!r} {found.sqlalchemy_url()}"
