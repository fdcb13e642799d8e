"""The connection that the commands read Loki through, with its failures said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from stores.loki_http import LokiHttp, LokiUnavailable, loki_http
from stores.settings import StoreSettings
from trainwire.errors import Problem


@contextmanager
def reading_loki(settings: StoreSettings) -> Iterator[LokiHttp]:
    """Give the connections to Loki; what it refuses becomes a `Problem` that names its address."""
    try:
        yield loki_http(settings)
    except LokiUnavailable as exc:
        raise Problem(f"{exc}; LOKI_URL is {settings.loki_url}") from exc
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise Problem(
            f"what answers at {settings.loki_url} is not Loki: set LOKI_URL to Loki's own address"
        ) from exc
