"""The connection to Loki: addresses, time-outs, tenant, authentication, and what its answers mean."""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from trainwire.schemas.streams.tls import tls_trouble
from trainwire.stores.settings import StoreSettings

CONNECT_TIMEOUT_S: Final = 3
PUSH_TIMEOUT_S: Final = 15
QUERY_TIMEOUT_S: Final = 60
"""Loki's own `query_timeout`: a query over a week is an hour's query for each of its hours."""
LONGEST_RETRY_AFTER_S: Final = 600.0
CONNECTIONS: Final = 16
RATE_LIMIT: Final = 429
_SHOWN_ANSWER_CHARS: Final = 300
_MEANING: Final = {
    260: " (ingestion is blocked)",
    401: " (check LOKI_USER and LOKI_PASSWORD)",
    403: " (check what the user or tenant may do)",
    404: " (is LOKI_URL the address of Loki itself?)",
    RATE_LIMIT: " (rate limit)",
}


class LokiUnavailable(Exception):  # noqa: N818 - the word the whole project uses
    """Loki did not answer, or not as Loki does; `retry_after_s` is what it asked for, if it did.

    `is_rate_limit` where it is well and has only had enough for this second.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, is_rate_limit: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_rate_limit = is_rate_limit


class LokiHttp:
    """Keeps connections to one Loki alive; safe to use from several threads.

    It knows no proxy of the environment: one for the world outside is not one for our stores.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str | None = None,
        auth: tuple[str, str] | None = None,
        ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.url = url
        # Over a network bytes are dear; on this machine only the compression would be.
        self._compresses = parts.hostname not in {"localhost", "127.0.0.1", "::1"}
        self._headers = {"Accept-Encoding": "gzip"} if self._compresses else {}
        if auth is not None:
            self._headers["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
        if tenant:
            self._headers["X-Scope-OrgID"] = tenant
        tls = {} if ca_file is None or parts.scheme != "https" else {"ca_certs": str(ca_file)}
        self._pool = urllib3.connection_from_url(
            url,
            maxsize=CONNECTIONS,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=PUSH_TIMEOUT_S),
            **tls,
        )

    def post_json(self, path: str, body: bytes) -> urllib3.BaseHTTPResponse:
        """Send JSON."""
        headers = self._headers | {"Content-Type": "application/json"}
        if self._compresses:
            body, headers = gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}
        return self._request("POST", path, body=body, headers=headers)

    def post_empty(self, path: str, parameters: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a request whose parameters are all in its address."""
        return self._request("POST", f"{path}?{urlencode(parameters)}", headers=self._headers)

    def get(self, path: str, parameters: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask for something."""
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=QUERY_TIMEOUT_S)
        return self._request("GET", path, fields=parameters, headers=self._headers, timeout=timeout)

    def _request(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, path, redirect=False, **options)
        except HTTPError as exc:
            address = f"{self._pool.host}:{self._pool.port}"
            trouble = tls_trouble(exc, "with LOKI_CA_FILE")
            said = "does not answer: " + type(exc).__name__ if trouble is None else "cannot be used: " + trouble
            raise LokiUnavailable(f"Loki at {address} {said}") from exc


@cache
def loki_http(settings: StoreSettings) -> LokiHttp:
    """Return this process's connections to the Loki of the settings."""
    auth = (settings.loki_user, settings.loki_password.get_secret_value()) if settings.loki_user else None
    return LokiHttp(settings.loki_url, tenant=settings.loki_tenant, auth=auth, ca_file=settings.loki_ca_file)


def unavailable(answer: urllib3.BaseHTTPResponse) -> LokiUnavailable:
    """Return the error for an answer that is no proof of anything."""
    said = words_of(answer)[:_SHOWN_ANSWER_CHARS]
    meaning = _MEANING.get(answer.status, "")
    return LokiUnavailable(
        f"Loki answered {answer.status}{meaning}: {said}",
        _retry_after_s(answer),
        is_rate_limit=answer.status == RATE_LIMIT,
    )


def words_of(answer: urllib3.BaseHTTPResponse) -> str:
    """Return what an answer says in words."""
    return answer.data.decode(errors="replace").strip()


def _retry_after_s(answer: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return min(max(float(answer.headers["Retry-After"]), 0.0), LONGEST_RETRY_AFTER_S)
    except (KeyError, ValueError):
        return None
