"""An HTTP client for Loki: timeouts, tenant, authentication, and error messages with a remedy."""

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

from trainwire.schemas.backoff import retry_after_s
from trainwire.schemas.streams.tls import tls_trouble
from trainwire.stores.settings import StoreSettings

CONNECT_TIMEOUT_S: Final = 3
PUSH_TIMEOUT_S: Final = 15
QUERY_TIMEOUT_S: Final = 60
"""The default of Loki's `query_timeout`. Loki splits a query over a week into one query per hour."""
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


class LokiUnavailable(Exception):  # noqa: N818 - a state
    """Loki did not respond, or responded with an error.

    `retry_after_s` is the delay in its Retry-After header, if any. `is_rate_limit` is True for status 429: Loki
    works, but refuses more requests for now.
    """

    def __init__(self, text: str, retry_after_s: float | None = None, *, is_rate_limit: bool = False) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s
        self.is_rate_limit = is_rate_limit


class LokiHttp:
    """A connection pool for one Loki; thread-safe.

    `tenant` is sent in the header X-Scope-OrgID, and `auth` (user, password) as basic authentication; `ca_file`
    has the CA of an https URL. Proxy settings in the environment are ignored, because they are meant for external
    addresses. The methods return the response whatever its status is, and raise `LokiUnavailable` if there is
    none.
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
        # On this machine the compression would cost more than the transfer.
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
        """Send a POST request with a JSON body, compressed with gzip unless Loki is on this machine."""
        headers = self._headers | {"Content-Type": "application/json"}
        if self._compresses:
            body, headers = gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}
        return self._request("POST", path, body=body, headers=headers)

    def post_empty(self, path: str, parameters: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a POST request without a body; the parameters are part of the URL."""
        return self._request("POST", f"{path}?{urlencode(parameters)}", headers=self._headers)

    def get(self, path: str, parameters: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Send a GET request with query parameters."""
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=QUERY_TIMEOUT_S)
        return self._request("GET", path, fields=parameters, headers=self._headers, timeout=timeout)

    def _request(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(method, path, redirect=False, **options)
        except HTTPError as exc:
            address = f"{self._pool.host}:{self._pool.port}"
            trouble = tls_trouble(exc, "with LOKI_CA_FILE")
            problem = "does not answer: " + type(exc).__name__ if trouble is None else "cannot be used: " + trouble
            raise LokiUnavailable(f"Loki at {address} {problem}") from exc


@cache
def loki_http(settings: StoreSettings) -> LokiHttp:
    """Return the connection pool of this process for the Loki in the settings."""
    auth = (settings.loki_user, settings.loki_password.get_secret_value()) if settings.loki_user else None
    return LokiHttp(settings.loki_url, tenant=settings.loki_tenant, auth=auth, ca_file=settings.loki_ca_file)


def unavailable(answer: urllib3.BaseHTTPResponse) -> LokiUnavailable:
    """Return the exception for an error response of Loki; not for one that rejects a line."""
    message = message_of(answer)[:_SHOWN_ANSWER_CHARS]
    meaning = _MEANING.get(answer.status, "")
    return LokiUnavailable(
        f"Loki answered {answer.status}{meaning}: {message}",
        retry_after_s(answer.headers),
        is_rate_limit=answer.status == RATE_LIMIT,
    )


def message_of(answer: urllib3.BaseHTTPResponse) -> str:
    """Return the body of an HTTP response as text."""
    return answer.data.decode(errors="replace").strip()
