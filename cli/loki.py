"""The connection that the commands read Loki through, with its failures said in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainwire.stack.errors import Problem
from trainwire.stores.loki.http import LokiHttp, LokiUnavailable, loki_http
from trainwire.stores.settings import StoreSettings


@contextmanager
def reading_loki(settings: StoreSettings) -> Iterator[LokiHttp]:
    """Give the connections to Loki; what it refuses becomes a `Problem` that names its address."""
    try:
        yield loki_http(settings)
    except LokiUnavailable as exc:
        raise Problem(f"{exc}; LOKI_URL is {settings.loki_url}") from exc
