"""The test servers behind TLS, under a certificate authority of the tests' own, and one that nobody knows."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.certificates import LOOPBACK, Authority
from tests.tls_proxy import TlsProxy


@dataclass(frozen=True)
class Tls:
    """Puts TLS in front of servers for the length of a test."""

    ca: Path
    """The certificate to trust."""
    stranger: Path
    """That of an authority which has signed nothing here."""
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
    """Two authorities, and TLS in front of whatever the test names."""
    folders = [tmp_path / "authority", tmp_path / "stranger"]
    for folder in folders:
        folder.mkdir()
    ours, theirs = (Authority(folder) for folder in folders)
    with ExitStack() as stack:
        yield Tls(ours.path, theirs.path, ours, stack)
