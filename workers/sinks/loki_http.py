"""The connection to Loki: addresses, time-outs, tenant, authentication, and what its answers mean."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from workers.settings import Settings
from workers.sinks.base import SinkUnavailable

CONNECT_TIMEOUT_S: Final = 3
READ_TIMEOUT_S: Final = 15
LONGEST_RETRY_AFTER_S: Final = 600.0
CONNECTIONS: Final = 16
_SHOWN_ANSWER_CHARS: Final = 300
_MEANING: Final = {
    260: " (ingestion is blocked)",
    401: " (check LOKI_USER and LOKI_PASSWORD)",
    403: " (check what the user or tenant may do)",
    404: " (is LOKI_URL the address of Loki itself?)",
    429: " (rate limit)",
}


class LokiHttp:
    """Keeps connections to one Loki alive; safe to use from several threads."""

    def __init__(self, url: str, *, tenant: str | None = None, auth: tuple[str, str] | None = None) -> None:
        self._url = url.rstrip("/")
        parts = urlsplit(url)
        self._host = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        # Over a network bytes are dear; on this machine only the compression would be.
        self._compresses = parts.hostname not in {"localhost", "127.0.0.1", "::1"}
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy for the world outside is not one for our stores
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))
        self._session.auth = auth
        if tenant:
            self._session.headers["X-Scope-OrgID"] = tenant

    def post_json(self, path: str, body: bytes) -> requests.Response:
        """Send JSON."""
        headers = {"Content-Type": "application/json"}
        if self._compresses:
            body, headers = gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}
        return self._request("POST", path, data=body, headers=headers)

    def get(self, path: str, parameters: Mapping[str, str]) -> requests.Response:
        """Ask for something."""
        return self._request("GET", path, params=parameters)

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            return self._session.request(
                method,
                f"{self._url}{path}",
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                allow_redirects=False,
                **options,
            )
        except requests.RequestException as exc:
            raise SinkUnavailable(f"Loki at {self._host} does not answer: {type(exc).__name__}") from exc


@cache
def loki_http(settings: Settings) -> LokiHttp:
    """Return this process's connections to the Loki of the settings."""
    auth = (settings.loki_user, settings.loki_password.get_secret_value()) if settings.loki_user else None
    return LokiHttp(settings.loki_url, tenant=settings.loki_tenant, auth=auth)


def unavailable(answer: requests.Response) -> SinkUnavailable:
    """Return the error for an answer that is no proof of anything."""
    said = answer.text.strip()[:_SHOWN_ANSWER_CHARS]
    meaning = _MEANING.get(answer.status_code, "")
    return SinkUnavailable(f"Loki answered {answer.status_code}{meaning}: {said}", _retry_after_s(answer))


def _retry_after_s(answer: requests.Response) -> float | None:
    try:
        return min(max(float(answer.headers["Retry-After"]), 0.0), LONGEST_RETRY_AFTER_S)
    except (KeyError, ValueError):
        return None
