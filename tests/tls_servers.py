"""The test servers behind TLS: under a certificate authority of the tests, and under an untrusted one."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
import redis

from tests.certificates import LOOPBACK, Authority
from tests.tls_proxy import TlsProxy
from trainwire.workers.resources import Resources
from trainwire.workers.settings import Settings, load_settings

UNTRUSTED = "its certificate is not trusted (unable to get local issuer certificate): name the file of its CA"


@dataclass(frozen=True)
class Tls:
    """Puts TLS in front of servers for the length of a test."""

    ca: Path
    """The certificate to trust."""
    stranger: Path
    """The certificate of an authority that has signed none of the servers' certificates."""
    authority: Authority
    stack: ExitStack

    def in_front_of(self, url: str, *names: str, days: int = 1, asks_clients: bool = False) -> TlsProxy:
        """Return a proxy whose certificate has these names, by default loopback's; good for some days."""
        context = self.authority.server(names or LOOPBACK, days)
        if asks_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return self.stack.enter_context(TlsProxy(url, context))


def over(proxy: TlsProxy, url: str, scheme: str, **query: object) -> str:
    """Return the address of a server through its proxy, with user, password and database as they were."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    moved = parts._replace(scheme=scheme, netloc=f"{user}{at}127.0.0.1:{proxy.port}", query=urlencode(query))
    return moved.geturl()


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Tls]:
    """Two authorities, and TLS in front of the servers that the test names."""
    folders = [tmp_path / "authority", tmp_path / "stranger"]
    for folder in folders:
        folder.mkdir()
    ours, theirs = (Authority(folder) for folder in folders)
    with ExitStack() as stack:
        yield Tls(ours.path, theirs.path, ours, stack)


@pytest.fixture
def redis_over(tls: Tls, redis_url: str, client: redis.Redis) -> Callable[..., str]:  # noqa: ARG001 - empties it
    """Give a function that returns the address of Redis over TLS with these parameters."""
    proxy = tls.in_front_of(redis_url)
    return lambda **query: over(proxy, redis_url, "rediss", **query)


def settings_of(resources: Resources, **others: Any) -> Settings:
    """Return the settings of workers on the test servers, with some changed."""
    urls = {name: getattr(resources.settings, name).get_secret_value() for name in ("database_url", "redis_url")}
    return load_settings(**urls | others)
